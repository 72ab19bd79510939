// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"cmp"
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// The entries of an image's metadata that say whose it is. Those of the claim are for
// people, who see them with "rbd image-meta list"; the others keep it from being taken
// for another volume's.
const (
	// MetaClaim and MetaClaimNamespace are those of the claim that it was made for.
	MetaClaim          = "kubernetes.io/created-for/pvc/name"
	MetaClaimNamespace = "kubernetes.io/created-for/pvc/namespace"
	// MetaVolume has the name of the PersistentVolume.
	MetaVolume = "kubernetes.io/created-for/pv/name"
	// MetaIdentity has the identity of the provisioner.
	MetaIdentity = AnnIdentity
	// MetaCluster has the UID of the namespace kube-system of the Kubernetes
	// cluster that the image belongs to. Names and identities are the same in the
	// cluster that a copy of a volume was restored into; this is not.
	MetaCluster = AnnKubernetesCluster
)

// Owner is whom an image may belong to.
type Owner struct {
	// Volume is the name of the PersistentVolume.
	Volume string
	// Identity is that of the provisioner.
	Identity string
	// Cluster is the UID of the namespace kube-system, and empty where that may not
	// be read.
	Cluster string
	// Former is the cluster that hands the image over to this one, as the volume
	// says; empty for none.
	Former string
	// Claim and Namespace are those of the volume's claim; both are empty where it
	// has none.
	Claim, Namespace string
}

// OwnerOf returns whom the image of a volume should belong to, where identity and
// cluster are those of its provisioner.
func OwnerOf(pv *corev1.PersistentVolume, identity, cluster string) Owner {
	owner := Owner{Volume: pv.Name, Identity: identity, Cluster: cluster, Former: pv.Annotations[AnnFormerCluster]}
	if ref := pv.Spec.ClaimRef; ref != nil {
		owner.Claim, owner.Namespace = ref.Name, ref.Namespace
	}
	return owner
}

// Marks returns the metadata of the owner's image.
func (o Owner) Marks() map[string]string {
	marks := map[string]string{MetaVolume: o.Volume, MetaIdentity: o.Identity}
	if o.Cluster != "" {
		marks[MetaCluster] = o.Cluster
	}
	if o.Claim != "" {
		marks[MetaClaim], marks[MetaClaimNamespace] = o.Claim, o.Namespace
	}
	return marks
}

// TakesOver reports whether an image with that metadata belongs to the cluster that
// hands it over to o, and does not belong to o yet. One that does not say its cluster
// counts as this cluster's. Only an owner who knows its own cluster takes anything over.
func (o Owner) TakesOver(metadata map[string]string) bool {
	return o.Former != "" && o.Cluster != "" && cmp.Or(metadata[MetaCluster], o.Cluster) == o.Former && Foreign(metadata, o) != ""
}

// IsOf reports whether a volume that names our provisioner was made by the one
// of that identity. Without the annotation of it, it was.
func IsOf(pv *corev1.PersistentVolume, identity string) bool {
	of, given := pv.Annotations[AnnIdentity]
	return !given || of == identity
}

// Foreign says whose an image is by its metadata, if it is somebody else's than the
// owner's. Entries that are missing prove nothing: images of the retired provisioner
// have none.
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

// ForeignCluster returns the Kubernetes cluster that an image belongs to by its
// metadata, if that is not the given one; or an empty text. To a cluster that does not
// know its own UID, which is then empty, each image is foreign that belongs to one.
func ForeignCluster(metadata map[string]string, cluster string) string {
	if of := metadata[MetaCluster]; of != cluster {
		return of
	}
	return ""
}
