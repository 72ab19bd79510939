// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// whole adds to a volume what volumes from the API server have.
func whole(pv *corev1.PersistentVolume) *corev1.PersistentVolume {
	pv.Name, pv.ManagedFields = "pvc-1", []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	pv.Finalizers = []string{"kubernetes.io/pv-protection"}
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, corev1.LastAppliedConfigAnnotation, "all of it")
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, "example.com/theirs", "yes")
	pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "apps", Name: "data", UID: "1"}
	pv.Labels = map[string]string{"team": "blue"}
	pv.Spec.AccessModes, pv.Spec.MountOptions = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, []string{"discard"}
	pv.Spec.VolumeMode = new(corev1.PersistentVolumeBlock)
	pv.Spec.NodeAffinity = new(corev1.VolumeNodeAffinity)
	pv.Status.Phase = corev1.VolumeBound
	return pv
}

// Trim reduces a volume's source to what names an image. Apart from that, it removes only
// what nobody reads.
func TestTrim(t *testing.T) {
	theirs := csi("image", map[string]string{"pool": "kube", "mounter": "rbd"})
	theirs.Spec.CSI.NodeStageSecretRef = &corev1.SecretReference{Name: "secret"}
	local := new(corev1.PersistentVolume)
	local.Spec.Local = &corev1.LocalVolumeSource{Path: "/mnt"}
	ours := new(corev1.PersistentVolume)
	mounted().Write(ours)
	affinity := new(corev1.VolumeNodeAffinity)
	for _, test := range []struct {
		name     string
		pv       *corev1.PersistentVolume
		source   corev1.PersistentVolumeSource
		affinity *corev1.VolumeNodeAffinity
	}{
		{"an in-tree volume of rbd", inTree("kube", "image"), inTree("kube", "image").Spec.PersistentVolumeSource, affinity},
		{"a volume of our node plugin", ours, ours.DeepCopy().Spec.PersistentVolumeSource, affinity},
		{"a CSI volume that names an image", theirs, csi("image", map[string]string{"pool": "kube"}).Spec.PersistentVolumeSource, nil},
		{"one that names no pool", csi("pvc-1", map[string]string{"storage.kubernetes.io/csiProvisionerIdentity": "1-2-ebs"}), corev1.PersistentVolumeSource{}, nil},
		{"another kind of storage", local, corev1.PersistentVolumeSource{}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := whole(test.pv)
			want := got.DeepCopy()
			want.ManagedFields, want.Labels, want.Spec.AccessModes, want.Spec.MountOptions = nil, nil, nil, nil
			delete(want.Annotations, corev1.LastAppliedConfigAnnotation)
			want.Spec.PersistentVolumeSource, want.Spec.NodeAffinity = test.source, test.affinity
			if test.affinity == nil {
				want.Spec.Capacity, want.Spec.VolumeMode = nil, nil
			}
			for _, time := range []string{"once", "twice"} {
				volume.Trim(got)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("trimmed %s (-want +got):\n%s", time, diff)
				}
			}
		})
	}
	bare := new(corev1.PersistentVolume)
	volume.Trim(bare)
	if diff := cmp.Diff(new(corev1.PersistentVolume), bare); diff != "" {
		t.Errorf("a volume with nothing in it (-want +got):\n%s", diff)
	}
}

// A trimmed volume still says all that Read returns.
func TestTrimKeepsRecords(t *testing.T) {
	for _, want := range []volume.Record{full(), mounted()} {
		pv := whole(new(corev1.PersistentVolume))
		want.Write(pv)
		volume.Trim(pv)
		got, err := volume.Read(pv)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("a trimmed volume remembers (-want +got):\n%s", diff)
		}
	}
}
