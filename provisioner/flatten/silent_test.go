// SPDX-License-Identifier: Apache-2.0

package flatten_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/flatten"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

func secret(name string, key rbd.Key) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}, Type: access.TypeRBD,
		Data: map[string][]byte{access.KeyEntry: []byte(key.Reveal())},
	}
}

// TestFlattenBesideASilentUser: a clone whose pool can't be opened, because OSDs are silent
// towards its user, holds up no other one of the pool, and its claim is told why.
func TestFlattenBesideASilentUser(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		silent := location("rbd")
		silent.User, silent.Secret.Name = "silent", "silent"
		secrets := w.client.CoreV1().Secrets("kube-system")
		if _, err := secrets.Create(t.Context(), secret("silent", w.ceph.AddUser("silent", rbdtest.Caps{NoOSD: true}).Key), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		w.ceph.Clone("rbd", source, "first")
		request := func() error {
			parent, _ := w.ceph.Image("rbd", source)
			return w.Request(volume.PoolID{FSID: w.ceph.FSID(), Pool: "rbd"}.Image("first"), silent, parent.ID)
		}
		_ = request()
		w.pass(time.Second)
		w.clone(t, "rbd", "second")
		w.pass(time.Second)
		w.checkFlattened(t, "rbd", "second", true)
		err := request()
		if !errors.Is(err, flatten.ErrFlattening) || !errors.Is(err, rbd.ErrNoOSD) || !strings.Contains(err.Error(), "caps for OSDs may be missing") {
			t.Errorf("got %v, want it to say why", err)
		}
		w.checkFlattened(t, "rbd", "first", false)
		if _, err := secrets.Update(t.Context(), secret("silent", w.ceph.AddUser("silent", rbdtest.Caps{AllPools: true}).Key), metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		_ = request()
		w.pass(work.RetryCap)
		w.checkFlattened(t, "rbd", "first", true)
	})
}
