// SPDX-License-Identifier: Apache-2.0

// Package ownership says whether a volume's image belongs to this Kubernetes cluster,
// and makes it say so: images of earlier versions get the mark of their cluster, and
// those of volumes that have moved here for good are taken over. Whoever is about to
// change the image of a volume asks Keeper.Secure before, whoever is about to remove it
// Keeper.Check. What becomes of images is decided elsewhere.
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

// Keeper is the provisioner whose images are told from those of others.
type Keeper struct {
	// Identity is that of the provisioner.
	Identity string
	// Cluster is the UID of the namespace kube-system. Empty means that it may not be
	// read: images that belong to some cluster are then left alone.
	Cluster string
}

// Marker writes the metadata of images; rbd.Pool is one.
type Marker interface {
	SetMetadata(ctx context.Context, name string, entries map[string]string) error
}

// Secure returns nil when the image of a volume that is bound may be changed for it: it
// belongs to the volume, or to nobody, or was handed over to the volume and is marked as
// its own now. Other errors than those of SetMetadata say whose the image is and what to
// do.
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

// Check returns nil when the image of a volume that is released may be removed with it:
// it belongs to the volume, or to nobody. Nothing is taken over, whatever the volume
// says: somebody who hands an image over wants to keep it, and this one would be gone a
// moment later.
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

// foreign says whose the image of a volume is, if it is somebody else's, and what the
// annotation AnnFormerCluster has to say to hand it over; empty where it can't be.
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
