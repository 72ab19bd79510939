// SPDX-License-Identifier: Apache-2.0

package ownership_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// A volume whose user gets no answer from OSDs does not hold up that of another user in the
// same pool.
func TestBesideASilentUser(t *testing.T) {
	f := newFixture(t, nil, func(pv *corev1.PersistentVolume) {
		pv.Annotations[volume.AnnDeletionUser], pv.Annotations[volume.AnnDeletionSecretName] = "silent", "silent"
	})
	key := f.ceph.AddUser("silent", rbdtest.Caps{NoOSD: true}).Key
	_, err := f.client.CoreV1().Secrets("kube-system").Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "silent"},
		Data:       map[string][]byte{access.KeyEntry: []byte(key.Reveal())},
	}, metav1.CreateOptions{})
	f.must(err)
	f.inPool(func(p rbd.Pool) error { return p.CreateImage(t.Context(), "other", rbd.ImageSpec{SizeBytes: 1 << 30}) })
	other := f.volume()
	other.Name, other.UID = "other", "uid-other"
	other.Spec.RBD.RBDImage = "other"
	other.Annotations[volume.AnnDeletionUser], other.Annotations[volume.AnnDeletionSecretName] = "admin", "admin"
	f.run()
	f.eventually("the user that gets no answer was tried", func() bool {
		for _, action := range f.client.Actions() {
			if action.Matches("get", "secrets") {
				return true
			}
		}
		return false
	})
	_, err = f.client.CoreV1().PersistentVolumes().Create(t.Context(), other, metav1.CreateOptions{})
	f.must(err)
	f.eventually("the other's image is marked", func() bool {
		image, _ := f.ceph.Image(pool, "other")
		return image.Metadata[volume.MetaCluster] == here
	})
	if marks := f.marks(); len(marks) > 0 {
		t.Errorf("the image of the first has the marks %v", marks)
	}
}
