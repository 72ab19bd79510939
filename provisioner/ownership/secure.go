// SPDX-License-Identifier: Apache-2.0

// Package ownership decides whether a volume's image belongs to this Kubernetes cluster,
// and writes that into the image. Call Keeper.Secure before you change the image of a
// volume, and Keeper.Check before you remove it. Others decide what becomes of images.
package ownership

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Keeper tells the images of one provisioner from those of others.
type Keeper struct {
	// Identity is the provisioner's identity.
	Identity string
	// Cluster is the UID of the namespace kube-system. Empty means that the provisioner
	// may not read it: it then leaves images alone that belong to any cluster.
	Cluster string
}

// Secure returns nil if the image of a bound volume may be changed: it belongs to the
// volume or has no owner, or it was handed over to the volume and Secure has marked it as
// the volume's. Errors are those of SetMetadata, or say whose the image is and what to do.
func (k Keeper) Secure(ctx context.Context, pool rbd.Pool, pv *corev1.PersistentVolume, record volume.Record, image rbd.Image) error {
	owner := volume.OwnerOf(pv, k.Identity, k.Cluster)
	if owner.TakesOver(image.Metadata) {
		if err := pool.SetMetadata(ctx, record.Image, owner.Marks()); err != nil {
			return err
		}
		klog.FromContext(ctx).Info("Image taken over", "image", record.Image, "pool", record.Pool, "fromCluster", owner.Former)
		return nil
	}
	former, err := k.foreign(owner, record, image)
	if former == "" {
		return err
	}
	return fmt.Errorf("%w; if it is to be this volume's from now on, run: kubectl annotate --overwrite pv %s %s=%s",
		err, pv.Name, volume.AnnFormerCluster, former)
}

// Check returns nil if the image of a released volume may be removed with it: it belongs to
// the volume or has no owner. Check takes nothing over, whatever the volume says: a person who
// hands an image over wants to keep it, and this one would be gone a moment later.
func (k Keeper) Check(pv *corev1.PersistentVolume, record volume.Record, image rbd.Image) error {
	former, err := k.foreign(volume.OwnerOf(pv, k.Identity, k.Cluster), record, image)
	if former == "" {
		return err
	}
	return fmt.Errorf("%w; to drop this volume and keep the image, set the volume's persistentVolumeReclaimPolicy to Retain "+
		"and delete the volume; to have the image, bind the volume to a claim first (docs/moving.md)", err)
}

// foreign returns an error that says whose the image of a volume is if it is not the
// volume's. former is the value of the annotation AnnFormerCluster that would hand it over;
// empty if nothing can.
func (k Keeper) foreign(owner volume.Owner, record volume.Record, image rbd.Image) (former string, err error) {
	what := fmt.Sprintf("image %q in pool %q", record.Image, record.Pool)
	other := volume.ForeignCluster(image.Metadata, k.Cluster)
	switch {
	case other != "" && k.Cluster == "":
		return "", fmt.Errorf("%s belongs to the Kubernetes cluster whose namespace kube-system has the UID %q, and this provisioner may not "+
			"read that UID of its own: it is left alone; apply the manifests of rbac/ and restart the provisioner", what, other)
	case other != "":
		return other, fmt.Errorf("%s belongs to another Kubernetes cluster, whose namespace kube-system has the UID %q: it is left alone",
			what, other)
	}
	if reason := volume.Foreign(image.Metadata, owner); reason != "" {
		return k.Cluster, fmt.Errorf("%s is not this volume's: %s: it is left alone", what, reason)
	}
	return "", nil
}
