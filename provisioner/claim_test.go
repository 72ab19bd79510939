// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// unwanted are the ways in which a claim stops wanting a volume while the library still
// relies on its copy of the claim.
func unwanted() map[string]func(*testing.T, *fixture) {
	live := func(change func(*corev1.PersistentVolumeClaim)) func(*testing.T, *fixture) {
		return func(t *testing.T, f *fixture) { f.putLive(t, change) }
	}
	return map[string]func(*testing.T, *fixture){
		"the claim is gone":                 func(t *testing.T, f *fixture) { f.dropLive(t) },
		"another claim has its name":        live(func(c *corev1.PersistentVolumeClaim) { c.UID = "5678" }),
		"another claim has its name, bound": live(func(c *corev1.PersistentVolumeClaim) { c.UID, c.Spec.VolumeName = "5678", "pvc-5678" }),
		"the claim is bound elsewhere":      live(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "by-hand" }),
		"the claim is going": live(func(c *corev1.PersistentVolumeClaim) {
			c.DeletionTimestamp = &metav1.Time{Time: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)}
			c.Finalizers = []string{"kubernetes.io/pvc-protection"}
		}),
	}
}

func TestUnwanted(t *testing.T) {
	for name, change := range unwanted() {
		inBubble(t, name, func(t *testing.T) {
			f := newFixture(t)
			change(t, f)
			for range 2 {
				_, _, err := f.provision(t.Context(), t)
				checkIgnored(t, err)
				f.checkNothing(t)
			}
			checkSame(t, "the events", nil, f.sent(t))
		})
	}
}

// TestUnwantedWithImage: an image that an earlier attempt made gets a volume. Without
// one, nothing would ever remove it.
func TestUnwantedWithImage(t *testing.T) {
	seeded := func(metadata map[string]string) func(*testing.T, *fixture) {
		return func(t *testing.T, f *fixture) {
			f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, metadata)
		}
	}
	for name, change := range unwanted() {
		for _, test := range []struct {
			name   string
			before func(*testing.T, *fixture)
		}{
			{"its answer was lost", func(t *testing.T, f *fixture) {
				f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, Err: rbd.ErrTimeout, TakesEffect: true})
				if _, _, err := f.provision(t.Context(), t); !errors.Is(err, rbd.ErrTimeout) {
					t.Fatalf("got %v, want ErrTimeout", err)
				}
			}},
			{"without marks", seeded(nil)},
			{"with all marks", seeded(testMarks())},
			{"the user's secret is gone too", func(t *testing.T, f *fixture) {
				seeded(testMarks())(t, f)
				f.dropSecret(t, "apps", "user")
			}},
		} {
			inBubble(t, name+"/"+test.name, func(t *testing.T) {
				f := newFixture(t)
				test.before(t, f)
				change(t, f)
				checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
				f.checkMade(t)
			})
		}
	}
}

func TestUnwantedWithRemains(t *testing.T) {
	for name, change := range unwanted() {
		for _, remains := range []rbdtest.Remains{rbdtest.RemainsID, rbdtest.RemainsDirectory, rbdtest.RemainsDirectoryOnly} {
			inBubble(t, name+"/"+remains.String(), func(t *testing.T) {
				f := newFixture(t)
				f.ceph.AddRemains(testPool, testImage, remains)
				change(t, f)
				_, _, err := f.provision(t.Context(), t)
				checkIgnored(t, err)
				f.checkNothing(t)
			})
		}
	}
}

func TestUnwantedWithForeignImage(t *testing.T) { synctest.Test(t, testUnwantedWithForeignImage) }

func testUnwantedWithForeignImage(t *testing.T) {
	f := newFixture(t)
	f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, map[string]string{volume.MetaVolume: "pvc-other"})
	before, _ := f.ceph.Image(testPool, testImage)
	f.dropLive(t)
	_, _, err := f.provision(t.Context(), t)
	checkIgnored(t, err)
	after, _ := f.ceph.Image(testPool, testImage)
	checkSame(t, "the image", before, after)
}

// TestUnwantedUnclear: Ceph does not tell whether there is an image, and the claim is in
// no cache any more. Unless the library is told to remember the claim, it never asks
// again, and an image that a dead process made would stay for good.
func TestUnwantedUnclear(t *testing.T) {
	for _, call := range []rbdtest.Call{
		rbdtest.CallConnect, rbdtest.CallOpenPool, rbdtest.CallImage, rbdtest.CallSetMetadata, rbdtest.CallSetNotes,
	} {
		inBubble(t, string(call), func(t *testing.T) {
			f := newFixture(t)
			f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
			f.dropLive(t)
			f.ceph.Fake(rbdtest.FakeFault{Call: call, Err: rbd.ErrConnectionLost})
			_, state, err := f.provision(t.Context(), t)
			if !errors.Is(err, rbd.ErrConnectionLost) {
				t.Fatalf("got %v, want ErrConnectionLost", err)
			}
			checkSame(t, "the state", controller.ProvisioningInBackground, state)
			checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
			f.checkMade(t)
		})
	}
}

// TestClaimHasVolume: the cache lags behind; the volume was saved, and the claim is bound
// to it.
func TestClaimHasVolume(t *testing.T) { synctest.Test(t, testClaimHasVolume) }

func testClaimHasVolume(t *testing.T) {
	f := newFixture(t)
	f.mustProvision(t)
	f.putLive(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pvc-1234" })
	f.connector.connects.Store(0)
	_, _, err := f.provision(t.Context(), t)
	checkIgnored(t, err)
	checkSame(t, "the number of connections", 0, f.connector.connects.Load())
	f.checkMade(t)
}

// TestCachedClaim: the API server is asked whether a claim waits only where the cache
// does not say so.
func TestCachedClaim(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*testing.T, *fixture)
		want   int
	}{
		{"it waits", func(*testing.T, *fixture) {}, 0},
		{"it is gone, which the cache does not know yet", func(t *testing.T, f *fixture) {
			cached := f.options.PVC.DeepCopy()
			f.dropLive(t)
			if err := f.claims.Add(cached); err != nil {
				t.Fatal(err)
			}
		}, 0},
		{"its volume is to outlive it", func(t *testing.T, f *fixture) {
			f.putClass(t, func(c *storagev1.StorageClass) {
				c.ReclaimPolicy = ptr.To(corev1.PersistentVolumeReclaimRetain)
			})
		}, 1},
		{"the cache does not know it yet", func(t *testing.T, f *fixture) {
			if err := f.claims.Delete(f.options.PVC); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"the cache still has one of that name from before", func(t *testing.T, f *fixture) {
			old := f.options.PVC.DeepCopy()
			old.UID = "5678"
			if err := f.claims.Update(old); err != nil {
				t.Fatal(err)
			}
		}, 1},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			test.change(t, f)
			f.client.ClearActions()
			// For a claim that is gone, the volume is one that Kubernetes releases.
			want := f.wantVolume()
			want.Spec.PersistentVolumeReclaimPolicy = ptr.Deref(f.options.StorageClass.ReclaimPolicy, "")
			checkSame(t, "the volume", want, f.mustProvision(t))
			got := 0
			for _, action := range f.client.Actions() {
				if action.Matches("get", "persistentvolumeclaims") {
					got++
				}
			}
			checkSame(t, "the number of reads of the claim", test.want, got)
		})
	}
}
