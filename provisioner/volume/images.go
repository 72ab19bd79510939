// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"encoding/hex"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// migrated matches the handles that Kubernetes gives to in-tree rbd volumes when a CSI
// driver serves them: mig_mons-CLUSTER_image-NAME_POOL. NAME lacks migratedPrefix; POOL is
// in hexadecimal. Source: csi-translation-lib, plugins/rbd.go.
var migrated = regexp.MustCompile(`(?s)^` + migratedHandle + `.*?_image-(.*)_([^_]*)$`)

const (
	migratedHandle = "mig_mons-"
	migratedPrefix = "kubernetes-dynamic-pvc-"
)

// ImageKey identifies an image among those of one Ceph cluster.
func ImageKey(pool, image string) string { return pool + "/" + image }

// ImageKeys returns the keys of all images that a volume may stand for, whatever driver
// made it: the image of a source that Read knows, or every combination of pool and image in
// the handle and attributes of a CSI source, because each driver names them differently.
// Keys of images that do not exist do no harm. Trim must keep whatever ImageKeys reads.
func ImageKeys(pv *corev1.PersistentVolume) []string {
	if source := pv.Spec.RBD; source != nil {
		return []string{ImageKey(source.RBDPool, source.RBDImage)}
	}
	source := pv.Spec.CSI
	if source == nil {
		return nil
	}
	if pool, image := source.VolumeAttributes[AttrPool], source.VolumeAttributes[AttrImage]; isCSI(pv) && pool != "" && image != "" {
		return []string{ImageKey(pool, image)}
	}
	var pools, images []string
	for key, value := range source.VolumeAttributes {
		switch {
		case value == "":
		case isNamespaceAttribute(key):
			return nil // our images are in no namespace
		case isPoolAttribute(key):
			pools = append(pools, value)
		case isImageAttribute(key):
			images = append(images, value)
		}
	}
	images = append(images, source.VolumeHandle)
	keys := []string{source.VolumeHandle} // as "pool/image"
	for _, pool := range pools {
		for _, image := range images {
			keys = append(keys, ImageKey(pool, image))
		}
	}
	if parts := migrated.FindStringSubmatch(source.VolumeHandle); parts != nil {
		if pool, err := hex.DecodeString(parts[2]); err == nil {
			// Kubernetes strips the prefix if the name has it.
			keys = append(keys, ImageKey(string(pool), parts[1]), ImageKey(string(pool), migratedPrefix+parts[1]))
		}
	}
	return slices.Compact(slices.Sorted(slices.Values(keys)))
}

// MayBeIn reports whether a volume's image may be in the Ceph cluster fsid. A volume that
// does not name its cluster may be in any.
func MayBeIn(pv *corev1.PersistentVolume, fsid string) bool {
	says := pv.Annotations[AnnClusterFSID]
	return says == "" || fsid == "" || says == fsid
}

func isPoolAttribute(key string) bool { return strings.Contains(strings.ToLower(key), "pool") }

func isImageAttribute(key string) bool { return strings.Contains(strings.ToLower(key), "image") }

func isNamespaceAttribute(key string) bool { return strings.EqualFold(key, "radosNamespace") }
