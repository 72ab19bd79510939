// SPDX-License-Identifier: Apache-2.0

// Package ownership decides whether a volume's image belongs to this Kubernetes cluster,
// and writes that into the image: it marks images of earlier versions with their cluster,
// and takes over the images of volumes that have moved here for good. Call Keeper.Secure
// before you change the image of a volume, and Keeper.Check before you remove it. Other
// packages decide what becomes of images.
package ownership

import (
	"context"
	"errors"
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

// Marker writes the metadata of images; rbd.Pool is one.
type Marker interface {
	SetMetadata(ctx context.Context, name string, entries map[string]string) error
}

// Secure returns nil if the image of a bound volume may be changed: it belongs to the
// volume or has no owner, or it was handed over to the volume and Secure has marked it as
// the volume's. Errors are those of SetMetadata, or say whose the image is and what to do.
func (k Keeper) Secure(ctx context.Context, pool Marker, pv *corev1.PersistentVolume, record volume.Record, image rbd.Image) error {
	owner := volume.OwnerOf(pv, k.Identity, k.Cluster)
	if owner.TakesOver(image.Metadata) {
		if err := pool.SetMetadata(ctx, record.Image, owner.Marks()); err != nil {
			return err
		}
		klog.FromContext(ctx).Info("Image taken over", "image", record.Image, "pool", record.Pool, "fromCluster", owner.Former)
		return nil
	}
	whose, former := k.foreign(owner, record, image)
	switch {
	case whose == "":
		return nil
	case former == "":
		return errors.New(whose)
	}
	return fmt.Errorf("%s; if it is to be this volume's from now on, run: kubectl annotate --overwrite pv %s %s=%s",
		whose, pv.Name, volume.AnnFormerCluster, former)
}

// Check returns nil if the image of a released volume may be removed with it: it belongs
// to the volume or has no owner. Check takes nothing over, whatever the volume says: a
// person who hands an image over wants to keep it, and this one would be gone a moment
// later.
func (k Keeper) Check(pv *corev1.PersistentVolume, record volume.Record, image rbd.Image) error {
	whose, former := k.foreign(volume.OwnerOf(pv, k.Identity, k.Cluster), record, image)
	switch {
	case whose == "":
		return nil
	case former == "":
		return errors.New(whose)
	}
	return fmt.Errorf("%s; to drop this volume and keep the image, set the volume's persistentVolumeReclaimPolicy to Retain "+
		"and delete the volume; to have the image, bind the volume to a claim first (docs/moving.md)", whose)
}

// foreign says whose the image of a volume is; empty if it is not foreign. former is the
// value of the annotation AnnFormerCluster that hands the image over; empty if nothing
// can.
func (k Keeper) foreign(owner volume.Owner, record volume.Record, image rbd.Image) (whose, former string) {
	what := fmt.Sprintf("image %q in pool %q", record.Image, record.Pool)
	other := volume.ForeignCluster(image.Metadata, k.Cluster)
	switch {
	case other != "" && k.Cluster == "":
		return fmt.Sprintf("%s belongs to the Kubernetes cluster whose namespace kube-system has the UID %q, and this provisioner may not "+
			"read that UID of its own: it is left alone; apply the manifests of rbac/ and restart the provisioner", what, other), ""
	case other != "":
		return fmt.Sprintf("%s belongs to another Kubernetes cluster, whose namespace kube-system has the UID %q: it is left alone",
			what, other), other
	}
	if reason := volume.Foreign(image.Metadata, owner); reason != "" {
		return fmt.Sprintf("%s is not this volume's: %s: it is left alone", what, reason), k.Cluster
	}
	return "", ""
}
