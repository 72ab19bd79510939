// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/test/cluster"
)

// What changes under a connected provisioner shows on the next claim (a secret a second
// later), and on the deletion of a volume that was made before. Both succeed once the
// mistake is corrected.
func TestFaultsBetweenCreationAndDeletion(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		spoil func(*fixture)
		// What the claim and the volume say; NAME is the fixture's name. Empty means that
		// all goes well nevertheless.
		claim, volume string
		mend          func(*fixture)
	}{
		{
			"the caps are revoked",
			func(f *fixture) {
				_, err := rig.Ceph.CreateUser(f.Context(), f.name+"-admin", "mon", "profile rbd", "osd", "profile rbd pool=rbd")
				f.must(err)
				f.reconnect()
			},
			"permission denied: client.NAME-admin", "permission denied: client.NAME-admin",
			func(f *fixture) { f.cephUser("admin", f.name) },
		},
		{
			"the user is removed",
			func(f *fixture) {
				f.must(rig.Ceph.DeleteUser(f.Context(), f.name+"-admin"))
				f.reconnect()
			},
			"permission denied: check that the user exists", "permission denied: check that the user exists",
			func(f *fixture) {
				f.adminKey = f.cephUser("admin", f.name)
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey)
			},
		},
		{
			"the key is another",
			func(f *fixture) {
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.userKey)
			},
			"permission denied: check that the user exists", "permission denied: check that the user exists",
			func(f *fixture) {
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey)
			},
		},
		{
			// The new key is in the secret, and the connection is replaced.
			"the key is rotated",
			func(f *fixture) {
				f.must(rig.Ceph.DeleteUser(f.Context(), f.name+"-admin"))
				f.adminKey = f.cephUser("admin", f.name)
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey)
			},
			"", "", func(*fixture) {},
		},
		{
			"the secret is deleted",
			func(f *fixture) {
				f.must(rig.Kube.Client.CoreV1().Secrets(namespace).Delete(f.Context(), f.name+"-admin", metav1.DeleteOptions{}))
			},
			`secret "kube-system/NAME-admin": secret does not exist`, `secret "kube-system/NAME-admin": secret does not exist`,
			func(f *fixture) { f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey) },
		},
		{
			// A volume says where its image is: what its class says now does not matter.
			"the class leads elsewhere",
			func(f *fixture) {
				client := rig.Kube.Client.StorageV1().StorageClasses()
				f.must(client.Delete(f.Context(), f.name+"-a", metav1.DeleteOptions{}))
				f.class("a", func(c *storagev1.StorageClass) {
					c.Parameters["pool"], c.Parameters["monitors"] = "nowhere", "127.0.0.1:1"
					c.Parameters["adminSecretName"] = "nothing"
				})
			},
			`secret "kube-system/nothing": secret does not exist`, "",
			func(f *fixture) {
				f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(f.Context(), f.name+"-a", metav1.DeleteOptions{}))
				f.class("a", nil)
			},
		},
		{
			// Ceph counts every five seconds or so what a pool holds, and only then
			// refuses writes.
			"the pool is over its quota",
			func(f *fixture) {
				f.untrash()
				f.fill()
			},
			// Deletions make room, also the first one ever.
			"pool is full or over its quota", "",
			func(f *fixture) { f.quota("0") },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			class := f.class("a", nil)
			old := f.claim("old", class, nil)
			pv := f.bound(old)
			test.spoil(f)
			var young *corev1.PersistentVolumeClaim
			if test.claim != "" {
				young = f.claimRefused(class, f.named(test.claim))
				f.pending(young)
			} else {
				young = f.claim("young", class, nil)
			}
			f.delete(old)
			if test.volume != "" {
				f.event(pv, f.named(test.volume))
				f.rbd("info", pv.Spec.RBD.RBDImage)
			} else {
				f.gone(pv)
			}
			test.mend(f)
			f.bound(young)
			f.gone(pv)
			f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
		})
	}
}

// claimRefused makes claims until one has an event with text, and returns that claim.
// What was read of a secret serves for a second, so earlier claims may be bound.
func (f *fixture) claimRefused(class *storagev1.StorageClass, text string) *corev1.PersistentVolumeClaim {
	f.Helper()
	for n := range 200 {
		claim := f.claim(fmt.Sprintf("young-%d", n), class, nil)
		bound := false
		f.eventually(func(ctx context.Context) error {
			live, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			bound = live.Status.Phase == corev1.ClaimBound
			if events := f.events(ctx, claim.UID); !bound && !says(events, text) {
				return fmt.Errorf("claim %s is not bound, and no event says %q: %s", claim.Name, text, events)
			}
			return nil
		})
		if !bound {
			return claim
		}
	}
	f.Fatalf("no claim was told %q", text)
	return nil
}

// untrash makes the next deletion the first one ever in the fixture's pool: "rbd pool init"
// of Ceph 18 makes the trash, which 16 and our documentation leave to the first deletion.
func (f *fixture) untrash() {
	f.Helper()
	objects, err := rig.Ceph.Run(f.Context(), "rados", "--pool", f.name, "ls")
	f.must(err)
	if slices.Contains(strings.Fields(objects), "rbd_trash") {
		_, err := rig.Ceph.Run(f.Context(), "rados", "--pool", f.name, "rm", "rbd_trash")
		f.must(err)
	}
}

// fill makes the fixture's pool full: it is over its quota.
func (f *fixture) fill() {
	f.Helper()
	f.quota("1")
	f.eventually(func(ctx context.Context) error {
		out, err := rig.Ceph.Run(ctx, "ceph", "osd", "pool", "ls", "detail")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.Contains(line, "'"+f.name+"'") && strings.Contains(line, "full_quota") {
				return nil
			}
		}
		return errors.New("the pool is not full yet")
	})
	f.settleMap()
}

// quota limits how many objects the fixture's pool may hold; 0 is no limit.
func (f *fixture) quota(objects string) {
	f.Helper()
	_, err := rig.Ceph.Run(f.Context(), "ceph", "osd", "pool", "set-quota", f.name, "max_objects", objects)
	f.must(err)
}

// reconnect makes Ceph refuse the connections of the fixture's admin, who must make new
// ones: a connection keeps the caps that it began with for up to an hour.
func (f *fixture) reconnect() {
	f.Helper()
	var sessions []struct {
		Entity string `json:"entity_name"`
		Addrs  struct {
			Addrvec []struct {
				Addr  string `json:"addr"`
				Nonce uint64 `json:"nonce"`
			} `json:"addrvec"`
		} `json:"addrs"`
	}
	f.must(rig.Ceph.JSON(f.Context(), &sessions, "ceph", "tell", "mon.a", "sessions"))
	refused := 0
	for _, s := range sessions {
		if strings.TrimPrefix(s.Entity, "client.") != f.name+"-admin" {
			continue
		}
		for _, a := range s.Addrs.Addrvec {
			_, err := rig.Ceph.Run(f.Context(), "ceph", "osd", "blocklist", "add", fmt.Sprintf("%s/%d", a.Addr, a.Nonce))
			f.must(err)
			refused++
		}
	}
	if refused == 0 {
		f.Fatalf("the monitor knows no connection of %s-admin: %+v", f.name, sessions)
	}
	f.settleMap()
}

// settleMap waits until each placement group of the fixture's pool uses the monitors'
// newest map: OSDs learn of a new one with a delay.
func (f *fixture) settleMap() {
	f.Helper()
	var newest struct {
		Epoch int `json:"epoch"`
	}
	f.must(rig.Ceph.JSON(f.Context(), &newest, "ceph", "osd", "dump"))
	var groups struct {
		Stats []struct {
			ID string `json:"pgid"`
		} `json:"pg_stats"`
	}
	f.must(rig.Ceph.JSON(f.Context(), &groups, "ceph", "pg", "ls-by-pool", f.name))
	if len(groups.Stats) == 0 {
		f.Fatalf("the pool %s has no placement groups", f.name)
	}
	for _, group := range groups.Stats {
		f.eventually(func(ctx context.Context) error {
			var state struct {
				Epoch int `json:"epoch"`
			}
			if err := rig.Ceph.JSON(ctx, &state, "ceph", "tell", group.ID, "query"); err != nil {
				return err
			}
			if state.Epoch < newest.Epoch {
				return fmt.Errorf("placement group %s is at map %d, the newest is %d", group.ID, state.Epoch, newest.Epoch)
			}
			return nil
		})
	}
}

// A pool that is missing at first, and one that was never initialised.
func TestPoolMadeLate(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	late := f.name + "-late"
	f.cephUser("admin", f.name, late)
	class := f.class("a", func(c *storagev1.StorageClass) { c.Parameters["pool"] = late })
	claim := f.claim("data", class, nil)
	f.event(claim, f.named(`open pool "NAME-late": pool does not exist: create the pool, or correct its name`))
	f.pending(claim)
	_, err := rig.Ceph.Run(t.Context(), "ceph", "osd", "pool", "create", late)
	f.must(err)
	// It works without "rbd pool init", as it does for the rbd command.
	pv := f.bound(claim)
	f.delete(claim)
	f.gone(pv)
	f.must(cluster.Eventually(t.Context(), patience, func(ctx context.Context) error { return rig.ImagesMatchVolumes(ctx, late) }))
	f.must(rig.Ceph.DeletePool(t.Context(), late))
}
