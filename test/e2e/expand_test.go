// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// growing is a class that lets claims ask for more.
func growing(c *storagev1.StorageClass) { c.AllowVolumeExpansion = ptr.To(true) }

func block(c *corev1.PersistentVolumeClaim) {
	c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
}

// ask raises what a claim requests.
func (f *fixture) ask(claim *corev1.PersistentVolumeClaim, size string) {
	f.Helper()
	f.must(f.tryAsk(claim, size))
}

func (f *fixture) tryAsk(claim *corev1.PersistentVolumeClaim, size string) error {
	f.Helper()
	patch := fmt.Sprintf(`{"spec":{"resources":{"requests":{"storage":%q}}}}`, size)
	_, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(f.Context(), claim.Name,
		types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// grown waits until a claim's volume and image have a size and the claim is told:
// one of mode Block has it, of the other its file system is to be grown.
func (f *fixture) grown(claim *corev1.PersistentVolumeClaim, size string) {
	f.Helper()
	want := resource.MustParse(size)
	var pv *corev1.PersistentVolume
	f.eventually(func(ctx context.Context) error {
		live, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		pv, err = rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, live.Spec.VolumeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		has, told := pv.Spec.Capacity.Storage(), live.Status.Capacity.Storage()
		if has.Cmp(want) != 0 {
			return fmt.Errorf("volume %s has %s; %s", pv.Name, has, f.events(ctx, live.UID))
		}
		var done bool
		if *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock {
			done = told.Cmp(want) == 0 && len(live.Status.Conditions) == 0
		} else {
			done = condition(live, corev1.PersistentVolumeClaimFileSystemResizePending)
		}
		if !done {
			return fmt.Errorf("the claim has %s and %+v; %s", told, live.Status.Conditions, f.events(ctx, live.UID))
		}
		return nil
	})
	if got := f.image(f.name, pv.Spec.RBD.RBDImage).Size; got != want.Value() {
		f.Errorf("the image has %d bytes, want %d", got, want.Value())
	}
}

func condition(claim *corev1.PersistentVolumeClaim, kind corev1.PersistentVolumeClaimConditionType) bool {
	for _, c := range claim.Status.Conditions {
		if c.Type == kind && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// kubelet does for a claim what kubelet does once it has grown the file system.
func (f *fixture) kubelet(claim *corev1.PersistentVolumeClaim, size string) {
	f.Helper()
	patch := fmt.Sprintf(`{"status":{"capacity":{"storage":%q},"conditions":[],"allocatedResourceStatuses":null}}`, size)
	_, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(f.Context(), claim.Name,
		types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	f.must(err)
}

// A claim is given what it asks for, also a second time, and while a client uses
// the image: the image and the volume grow, and the claim says that the file
// system is to be grown. For a volume of mode Block that is all.
func TestExpand(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", growing)
	t.Run("a file system", func(t *testing.T) {
		f := f.in(t)
		claim := f.claim("data", class, nil)
		pv := f.bound(claim)
		_, unwatch := f.watch(pv.Spec.RBD.RBDImage)
		f.ask(claim, "3G")
		f.grown(claim, "2862Mi") // 3 GB, rounded up to a MiB
		unwatch()
		f.kubelet(claim, "2862Mi")
		f.ask(claim, "100Gi")
		f.grown(claim, "100Gi")
	})
	t.Run("a device", func(t *testing.T) {
		f := f.in(t)
		claim := f.claim("raw", class, block)
		f.bound(claim)
		for _, size := range []string{"2Gi", "1Ti"} {
			f.ask(claim, size)
			f.grown(claim, size)
		}
	})
}
