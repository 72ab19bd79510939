// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// The entries of an image's metadata that keep it from being taken for another
// volume's.
const (
	// MetaVolume has the name of the PersistentVolume.
	MetaVolume = "kubernetes.io/created-for/pv/name"
	// MetaIdentity has the identity of the provisioner.
	MetaIdentity = AnnIdentity
)

// IsOf reports whether a volume that names our provisioner was made by the one
// of that identity. Without the annotation of it, it was.
func IsOf(pv *corev1.PersistentVolume, identity string) bool {
	of, given := pv.Annotations[AnnIdentity]
	return !given || of == identity
}

// Foreign says whose an image is by its metadata, if it is somebody else's than
// the owner's, who is given as such metadata too. Entries that are missing prove
// nothing: images of the retired provisioner have none.
func Foreign(metadata, owner map[string]string) string {
	for _, key := range []string{MetaVolume, MetaIdentity} {
		if value := metadata[key]; value != "" && value != owner[key] {
			return fmt.Sprintf("its metadata %s is %q", key, value)
		}
	}
	return ""
}
