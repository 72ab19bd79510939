// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// migratedHandle begins the handles that Kubernetes gives to volumes of in-tree rbd
// which a CSI driver serves: mig_mons-CLUSTER_image-NAME_POOL, where NAME lacks
// migratedPrefix and POOL is in hexadecimal. Source: csi-translation-lib,
// plugins/rbd.go.
const (
	migratedHandle = "mig_mons-"
	migratedImage  = "_image-"
	migratedPrefix = "kubernetes-dynamic-pvc-"
)

// ImageKey identifies an image among those of one Ceph cluster.
func ImageKey(pool, image string) string { return pool + "/" + image }

// ImageKeys returns the keys of all images that a volume may stand for, whoever made
// it: that of an in-tree rbd source, and each combination of pool and image that a CSI
// source names in its handle and attributes, where drivers differ in their words. Keys
// of images that do not exist do no harm.
//
// A cache has to keep of a volume what this reads: see Trim.
func ImageKeys(pv *corev1.PersistentVolume) []string {
	if source := pv.Spec.RBD; source != nil {
		return []string{ImageKey(source.RBDPool, source.RBDImage)}
	}
	source := pv.Spec.CSI
	if source == nil {
		return nil
	}
	var pools, images []string
	for _, key := range slices.Sorted(maps.Keys(source.VolumeAttributes)) {
		value := source.VolumeAttributes[key]
		switch {
		case value == "":
		case isNamespaceAttribute(key):
			return nil // ours are in none
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
	if pool, name, ok := parseMigrated(source.VolumeHandle); ok {
		// The prefix is taken off where there is one.
		keys = append(keys, ImageKey(pool, name), ImageKey(pool, migratedPrefix+name))
	}
	return slices.Compact(slices.Sorted(slices.Values(keys)))
}

// MayBeIn reports whether the image of a volume may be in a Ceph cluster. One that does
// not say its cluster may be in any.
func MayBeIn(pv *corev1.PersistentVolume, fsid string) bool {
	says := pv.Annotations[AnnClusterFSID]
	return says == "" || fsid == "" || says == fsid
}

func isPoolAttribute(key string) bool { return strings.Contains(strings.ToLower(key), "pool") }

func isImageAttribute(key string) bool { return strings.Contains(strings.ToLower(key), "image") }

func isNamespaceAttribute(key string) bool { return strings.EqualFold(key, "radosNamespace") }

func parseMigrated(handle string) (pool, name string, ok bool) {
	rest, ok := strings.CutPrefix(handle, migratedHandle)
	if !ok {
		return "", "", false
	}
	_, rest, ok = strings.Cut(rest, migratedImage)
	end := strings.LastIndex(rest, "_")
	if !ok || end < 0 {
		return "", "", false
	}
	decoded, err := hex.DecodeString(rest[end+1:])
	return string(decoded), rest[:end], err == nil
}
