// SPDX-License-Identifier: Apache-2.0

// Package ownership says whether a volume's image belongs to this Kubernetes cluster,
// and makes it say so: images of earlier versions get the mark of their cluster, and
// those of volumes that have moved here for good are taken over. Whoever is about to
// change or remove the image of a volume asks Keeper.Secure before. It does not decide
// what becomes of images.
package ownership

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// MetaClaim and MetaClaimNamespace are entries of an image's metadata for people, who
// see them with "rbd image-meta list": the claim that it was made for.
const (
	MetaClaim          = "kubernetes.io/created-for/pvc/name"
	MetaClaimNamespace = "kubernetes.io/created-for/pvc/namespace"
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

// Secure returns nil when the image of a volume may be changed for it: it belongs to
// the volume, or to nobody, or was handed over to the volume and is marked as its own
// now. Other errors than those of SetMetadata say whose the image is and what to do.
func (k Keeper) Secure(ctx context.Context, pool Marker, pv *corev1.PersistentVolume, record volume.Record, image rbd.Image) error {
	owner := volume.OwnerOf(pv, k.Identity, k.Cluster)
	if owner.TakesOver(image.Metadata) {
		if err := pool.SetMetadata(ctx, record.Image, marks(pv, owner)); err != nil {
			return err
		}
		klog.FromContext(ctx).Info("Image taken over", "image", record.Image, "pool", record.Pool, "fromCluster", owner.Former)
		return nil
	}
	what := fmt.Sprintf("image %q in pool %q", record.Image, record.Pool)
	other := volume.ForeignCluster(image.Metadata, k.Cluster)
	switch {
	case other != "" && k.Cluster == "":
		return fmt.Errorf("%s belongs to the Kubernetes cluster whose namespace kube-system has the UID %q, and this provisioner may not "+
			"read that UID of its own: it is left alone; apply the manifests of rbac/ and restart the provisioner", what, other)
	case other != "":
		return fmt.Errorf("%s belongs to another Kubernetes cluster, whose namespace kube-system has the UID %q: it is left alone; "+
			"if the volume has moved here for good, run: kubectl annotate pv %s %s=%s; if not, set the volume's "+
			"persistentVolumeReclaimPolicy to Retain and delete the volume", what, other, pv.Name, volume.AnnFormerCluster, other)
	}
	if whose := volume.Foreign(image.Metadata, owner); whose != "" {
		return fmt.Errorf("%s is not this volume's: %s: it is left alone", what, whose)
	}
	return nil
}

// marks is the metadata of the image of a volume.
func marks(pv *corev1.PersistentVolume, owner volume.Owner) map[string]string {
	marks := owner.Marks()
	if ref := pv.Spec.ClaimRef; ref != nil {
		marks[MetaClaim], marks[MetaClaimNamespace] = ref.Name, ref.Namespace
	}
	return marks
}
