// SPDX-License-Identifier: Apache-2.0

package resize

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// largerClone is a clone of 2 GiB whose source had 1 GiB.
func largerClone(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
	asks(claim, pv)
	claim.Spec.VolumeMode, pv.Spec.VolumeMode = nil, nil
	claim.Status.Capacity, pv.Spec.Capacity = storage("2Gi"), storage("2Gi")
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, volume.AnnFileSystemSize, "1Gi")
}

func noted(pv *corev1.PersistentVolume) bool { return pv.Annotations[volume.AnnFileSystemSize] != "" }

// TestFileSystemOfClone: kubelet is told to grow the file system of a clone that is
// larger than its source.
func TestFileSystemOfClone(t *testing.T) {
	settled := func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) bool {
		return !noted(pv) && pending(claim) && claim.Status.Capacity.Storage().Value() == gib && has(pv.Spec.Capacity)
	}
	t.Run("a claim that is bound", func(t *testing.T) {
		f := newFixture(t, largerClone)
		f.grow(2 * gib)
		defer f.run()()
		f.eventually(settled)
	})
	t.Run("a claim that is bound later", func(t *testing.T) {
		f := newFixture(t, func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			largerClone(claim, pv)
			claim.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
		})
		f.grow(2 * gib)
		defer f.run()()
		if _, err := f.client.CoreV1().PersistentVolumeClaims("apps").Patch(t.Context(), "data", types.MergePatchType,
			[]byte(`{"status":{"phase":"Bound","capacity":{"storage":"2Gi"}}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
		f.eventually(settled)
	})
	t.Run("cut off before the note was taken away", func(t *testing.T) {
		f := newFixture(t, func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			largerClone(claim, pv)
			claim.Status.Capacity = storage("1Gi")
		})
		f.grow(2 * gib)
		defer f.run()()
		f.eventually(settled)
	})
	t.Run("a note that can't be read", func(t *testing.T) {
		f := newFixture(t, func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			largerClone(claim, pv)
			pv.Annotations[volume.AnnFileSystemSize] = "large"
		})
		f.grow(2 * gib)
		defer f.run()()
		f.eventually(func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) bool {
			return !noted(pv) && has(claim.Status.Capacity)
		})
	})
}

// TestFileSystemOfOthers: what is not ours, or not the claim's, stays as it is.
func TestFileSystemOfOthers(t *testing.T) {
	for name, change := range map[string]func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume){
		"another identity": func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Annotations[volume.AnnIdentity] = "there"
		},
		"another's claim": func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) { claim.UID = "another" },
		"not bound": func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			claim.Status.Phase = corev1.ClaimPending
		},
		"a replica in idle": nil,
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
				largerClone(claim, pv)
				if change != nil {
					change(claim, pv)
				}
			})
			f.leading = func() bool { return change != nil }
			_ = f.growFileSystem(t.Context(), "pvc-1234") // it may say why not
			f.eventually(func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) bool {
				return noted(pv) && has(claim.Status.Capacity)
			})
		})
	}
}
