// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"cmp"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
)

// The keys of an image's owner metadata, which keep it from being taken for another volume's.
const (
	// MetaClaim and MetaClaimNamespace name the claim that the image was made for, for
	// people, who see it with "rbd image-meta list".
	MetaClaim          = "kubernetes.io/created-for/pvc/name"
	MetaClaimNamespace = "kubernetes.io/created-for/pvc/namespace"
	// MetaVolume is the name of the PersistentVolume, and MetaIdentity the provisioner's
	// identity.
	MetaVolume   = "kubernetes.io/created-for/pv/name"
	MetaIdentity = AnnIdentity
	// MetaCluster is the UID of the namespace kube-system in the Kubernetes cluster that
	// owns the image. When a copy of a volume is restored into another cluster, names and
	// identities stay the same; this UID does not.
	MetaCluster = AnnKubernetesCluster
)

// Owner is a possible owner of an image.
type Owner struct {
	// Volume is the name of the PersistentVolume, and Identity the provisioner's.
	Volume, Identity string
	// Cluster is as in MetaCluster; empty if the provisioner may not read that UID.
	Cluster string
	// Former is the cluster that hands the image over, according to the volume.
	Former string
	// Claim and Namespace name the volume's claim, if it has one.
	Claim, Namespace string
}

// OwnerOf returns the owner that the image of a volume should have. identity and cluster
// are those of its provisioner.
func OwnerOf(pv *corev1.PersistentVolume, identity, cluster string) Owner {
	owner := Owner{Volume: pv.Name, Identity: identity, Cluster: cluster, Former: pv.Annotations[AnnFormerCluster]}
	if ref := pv.Spec.ClaimRef; ref != nil {
		owner.Claim, owner.Namespace = ref.Name, ref.Namespace
	}
	return owner
}

// Marks returns the owner metadata for an image of o.
func (o Owner) Marks() map[string]string {
	marks := map[string]string{
		MetaVolume: o.Volume, MetaIdentity: o.Identity, MetaCluster: o.Cluster,
		MetaClaim: o.Claim, MetaClaimNamespace: o.Namespace,
	}
	maps.DeleteFunc(marks, func(_, value string) bool { return value == "" })
	return marks
}

// TakesOver reports whether an image with that metadata belongs to the cluster that hands
// it over to o, and not yet to o. An image that does not name its cluster counts as this
// cluster's. An owner that does not know its own cluster takes nothing over.
func (o Owner) TakesOver(metadata map[string]string) bool {
	return o.Former != "" && o.Cluster != "" &&
		cmp.Or(metadata[MetaCluster], o.Cluster) == o.Former && Foreign(metadata, o) != ""
}

// IsOf reports whether, of all provisioners with our name, the one with that identity
// made the volume. A volume without the annotation counts as made by any of them.
func IsOf(pv *corev1.PersistentVolume, identity string) bool {
	of, given := pv.Annotations[AnnIdentity]
	return !given || of == identity
}

// MadeBy reports whether a provisioner of that name and identity made the volume: see IsOf.
func MadeBy(pv *corev1.PersistentVolume, provisioner, identity string) bool {
	return pv.Annotations[AnnProvisionedBy] == provisioner && IsOf(pv, identity)
}

// Foreign explains which metadata shows that an image does not belong to o; empty if
// none does. Missing entries prove nothing: images of the retired provisioner have none.
func Foreign(metadata map[string]string, o Owner) string {
	if other := ForeignCluster(metadata, o.Cluster); other != "" {
		of := "which is another Kubernetes cluster"
		if o.Cluster == "" {
			of = "and this provisioner may not read the UID of its own namespace kube-system"
		}
		return fmt.Sprintf("its metadata %s is %q, %s", MetaCluster, other, of)
	}
	for _, mark := range []struct{ key, want string }{{MetaVolume, o.Volume}, {MetaIdentity, o.Identity}} {
		if value := metadata[mark.key]; value != "" && value != mark.want {
			return fmt.Sprintf("its metadata %s is %q", mark.key, value)
		}
	}
	return ""
}

// ForeignCluster returns the Kubernetes cluster that owns an image according to its metadata;
// empty if that is the given one or if the metadata names none. A provisioner that may not
// read its own cluster's UID passes "": every image that names a cluster is then foreign.
func ForeignCluster(metadata map[string]string, cluster string) string {
	if of := metadata[MetaCluster]; of != cluster {
		return of
	}
	return ""
}
