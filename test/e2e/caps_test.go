// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// A class whose user has no caps for OSDs holds up no other class of the same pool, for
// which claims come later. Its claims are told what the user needs, and are bound once it
// has that. OSDs of Ceph 16 refuse such a user; those of 18 or newer do not answer.
func TestUserWithoutCapsForOSDs(t *testing.T) {
	t.Parallel()
	const name = "example.com/caps"
	// Before the fixture, because the fixture's end needs it. The time limit is longer than
	// the other claims need on a busy machine.
	start(t, []string{"PROVISIONER_NAME=" + name}, "-leader-election=false", "-worker-threads=4", "-command-timeout=12")
	f := newFixture(t)
	user := f.name + "-bare"
	key, err := rig.Ceph.CreateUser(t.Context(), user, "mon", "profile rbd")
	f.must(err)
	useKey(key)
	f.secret(namespace, user, corev1.SecretTypeOpaque, key)
	class := func(suffix, user string) *storagev1.StorageClass {
		return f.class(suffix, func(c *storagev1.StorageClass) {
			c.Provisioner = name
			c.Parameters["adminId"], c.Parameters["adminSecretName"] = user, user
		})
	}
	bare, good := class("bare", user), class("good", f.name+"-admin")
	waiting := f.claims("bare", bare, 8)
	silent := !strings.HasPrefix(rig.Ceph.Version, "16.")
	if silent {
		// Some are sent away, while others fill the workers that they may have.
		f.eventually(func(ctx context.Context) error {
			for _, claim := range waiting {
				if strings.Contains(f.events(ctx, claim.UID), "other operations already wait for it") {
					return nil
				}
			}
			return fmt.Errorf("no claim of class %s was sent away", bare.Name)
		})
	}
	for _, claim := range f.claims("good", good, 5) {
		f.bound(claim)
	}
	told := "permission denied: "
	if silent {
		told = "no OSD has answered this user: no answer in time, the outcome is unknown"
		for _, claim := range waiting {
			if events := f.events(t.Context(), claim.UID); strings.Contains(events, told) {
				t.Errorf("an attempt of the other class ended before the claims of this one were bound: %s", events)
			}
		}
	}
	for _, claim := range waiting {
		f.event(claim, told)
		f.event(claim, f.named(`client.NAME-bare, with the key in secret "kube-system/NAME-bare", needs at least mon 'profile rbd', osd 'profile rbd pool=NAME'`))
		f.pending(claim)
	}
	_, err = rig.Ceph.CreateUser(t.Context(), user, "mon", "profile rbd", "osd", "profile rbd pool="+f.name)
	f.must(err)
	for _, claim := range waiting {
		f.bound(claim)
	}
}

// claims makes claims of 1Gi.
func (f *fixture) claims(prefix string, class *storagev1.StorageClass, n int) []*corev1.PersistentVolumeClaim {
	f.Helper()
	claims := make([]*corev1.PersistentVolumeClaim, n)
	for i := range claims {
		claims[i] = f.claim(fmt.Sprintf("%s-%d", prefix, i), class, nil)
	}
	return claims
}
