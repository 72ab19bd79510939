// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Obstacles to the removal of an image, beside those in delete_test.go. The image stays,
// and an event says why. Once the obstacle is gone, the image is removed without help.
func TestObstaclesToDeletion(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		put  func(f *fixture, image string)
		want string // NAME is the fixture's, IMAGE the image's
		take func(f *fixture, image string)
	}{
		{
			"a protected snapshot",
			func(f *fixture, image string) {
				f.rbd("snap", "create", "--no-progress", image+"@base")
				f.rbd("snap", "protect", image+"@base")
			},
			"image has snapshots: base: it will be removed once they are gone",
			func(f *fixture, image string) {
				f.rbd("snap", "unprotect", image+"@base")
				f.rbd("snap", "rm", "--no-progress", image+"@base")
			},
		},
		{
			"a clone",
			func(f *fixture, image string) {
				f.rbd("snap", "create", "--no-progress", image+"@base")
				f.rbd("clone", "--rbd-default-clone-format=2", image+"@base", f.name+"/clone")
			},
			"image has snapshots: base: it will be removed once they are gone",
			func(f *fixture, image string) {
				f.rbd("flatten", "--no-progress", "clone")
				f.rbd("rm", "--no-progress", "clone")
				f.rbd("snap", "rm", "--no-progress", image+"@base")
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			claim := f.claim("data", f.class("a", nil), nil)
			pv := f.bound(claim)
			image := pv.Spec.RBD.RBDImage
			test.put(f, image)
			f.delete(claim)
			f.event(pv, f.named(test.want))
			f.rbd("info", image)
			test.take(f, image)
			f.gone(pv)
			f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
		})
	}
}

// A clone that was made by hand, of a snapshot that is gone, is no obstacle: the volume
// is deleted, and its image waits in the trash until the clone does not need it any more.
func TestHandmadeClone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	image := pv.Spec.RBD.RBDImage
	f.rbd("snap", "create", "--no-progress", image+"@base")
	f.rbd("clone", "--rbd-default-clone-format=2", image+"@base", f.name+"/clone")
	f.rbd("snap", "rm", "--no-progress", image+"@base")
	f.delete(claim)
	f.volumeGone(pv)
	f.trashed(image)
	f.rbd("flatten", "--no-progress", "clone")
	f.rbd("rm", "--no-progress", "clone")
	f.gone(pv)
	f.nothingLeft()
}

// A lock is advice among its users, and stays when its owner dies: it is no obstacle, as
// for "rbd rm". A client that has the image open is a watcher, and that is an obstacle.
func TestLockedImage(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	image := pv.Spec.RBD.RBDImage
	f.rbd("lock", "add", image, "backup")
	_, unwatch := f.watch(image)
	f.delete(claim)
	f.event(pv, "image is in use by")
	f.rbd("info", image)
	unwatch()
	f.gone(pv)
}

// An image that was renamed is not the volume's any more: the volume is deleted, and the
// renamed image stays.
func TestImageRenamed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	f.rbd("rename", pv.Spec.RBD.RBDImage, "kept-aside")
	f.delete(claim)
	f.gone(pv)
	images, err := rig.Ceph.Images(t.Context(), f.name)
	f.must(err)
	if len(images) != 1 || images[0] != "kept-aside" {
		t.Errorf("got images %v, want kept-aside", images)
	}
	f.rbd("rm", "--no-progress", "kept-aside")
}

// A volume is deleted by hand while its claim still waits to be deleted; and another one,
// whose finalizer was removed, too. The image of the second is lost to Kubernetes, and we
// never remove it.
func TestVolumeDeletedByHand(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	released, forgotten := f.claim("released", class, nil), f.claim("forgotten", class, nil)
	first, second := f.bound(released), f.bound(forgotten)
	volumes := rig.Kube.Client.CoreV1().PersistentVolumes()

	f.rbd("snap", "create", "--no-progress", first.Spec.RBD.RBDImage+"@keep")
	f.delete(released)
	f.event(first, "image has snapshots")
	f.must(volumes.Delete(t.Context(), first.Name, metav1.DeleteOptions{}))
	f.rbd("info", first.Spec.RBD.RBDImage)
	f.rbd("snap", "rm", "--no-progress", first.Spec.RBD.RBDImage+"@keep")
	f.gone(first)

	f.must(volumes.Delete(t.Context(), second.Name, metav1.DeleteOptions{}))
	// Controllers restore theirs for as long as the volume is there.
	f.eventually(func(ctx context.Context) error {
		_, err := volumes.Patch(ctx, second.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
		claim, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(f.name).Get(ctx, forgotten.Name, metav1.GetOptions{})
		if err == nil && claim.Status.Phase != corev1.ClaimLost {
			err = fmt.Errorf("claim %s is %s", claim.Name, claim.Status.Phase)
		}
		return err
	})
	f.delete(forgotten)
	f.rbd("info", second.Spec.RBD.RBDImage)
	f.rbd("rm", "--no-progress", second.Spec.RBD.RBDImage)
}
