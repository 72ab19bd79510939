// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"maps"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Classes as they were written for other provisioners serve here as well.
func TestClassesOfOtherProvisioners(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const defaultKeyring = "/etc/ceph/keyring" // the API server's
	for name, test := range map[string]struct {
		// An empty value removes the parameter.
		change map[string]string
		want   corev1.RBDPersistentVolumeSource
	}{
		"csi-fstype": {
			map[string]string{"csi.storage.k8s.io/fstype": "xfs"},
			corev1.RBDPersistentVolumeSource{FSType: "xfs", Keyring: defaultKeyring, SecretRef: &corev1.SecretReference{Name: "user"}},
		},
		"both-fstypes": {
			map[string]string{"csi.storage.k8s.io/fstype": "xfs", "fsType": "xfs"},
			corev1.RBDPersistentVolumeSource{FSType: "xfs", Keyring: defaultKeyring, SecretRef: &corev1.SecretReference{Name: "user"}},
		},
		"no-secret": {
			map[string]string{"userSecretName": ""},
			corev1.RBDPersistentVolumeSource{Keyring: defaultKeyring},
		},
		"keyring": {
			map[string]string{"userSecretName": "", "keyring": "/etc/kube/ceph.keyring"},
			corev1.RBDPersistentVolumeSource{Keyring: "/etc/kube/ceph.keyring"},
		},
		"keyring-beside-secret": {
			map[string]string{"keyring": "/etc/kube/ceph.keyring"},
			corev1.RBDPersistentVolumeSource{Keyring: defaultKeyring, SecretRef: &corev1.SecretReference{Name: "user"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := f.in(t)
			class := f.class(name, func(c *storagev1.StorageClass) {
				maps.Copy(c.Parameters, test.change)
				maps.DeleteFunc(c.Parameters, func(_, value string) bool { return value == "" })
			})
			check := func(pv *corev1.PersistentVolume) {
				got := corev1.RBDPersistentVolumeSource{
					FSType: pv.Spec.RBD.FSType, Keyring: pv.Spec.RBD.Keyring, SecretRef: pv.Spec.RBD.SecretRef,
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("the source of volume %s (-want +got):\n%s", pv.Name, diff)
				}
			}
			claim := f.claim(name, class, nil)
			pv := f.bound(claim)
			check(pv)
			clone := f.claim(name+"-clone", class, from(name))
			check(f.bound(clone))
			// The volume alone tells how to delete it.
			f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(t.Context(), class.Name, metav1.DeleteOptions{}))
			f.delete(clone)
			f.delete(claim)
			f.gone(pv)
		})
	}
}
