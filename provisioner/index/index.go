// SPDX-License-Identifier: Apache-2.0

// Package index finds the volumes in the cache that name an image.
package index

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// byImage finds volumes by the keys of volume.ImageKeys.
const byImage = "image"

// Indexers returns the indexers that the cache of volumes needs.
func Indexers() cache.Indexers {
	return cache.Indexers{byImage: func(obj any) ([]string, error) {
		if pv, ok := obj.(*corev1.PersistentVolume); ok {
			return volume.ImageKeys(pv), nil
		}
		return nil, nil
	}}
}

// Volumes is the cache of volumes. It must have the Indexers.
type Volumes struct{ Cache cache.Indexer }

// Of returns the volumes that may name an image, whatever driver made them, sorted by name.
// An image without FSID may be in any cluster.
func (v Volumes) Of(image volume.ImageID) ([]*corev1.PersistentVolume, error) {
	found, err := v.Cache.ByIndex(byImage, volume.ImageKey(image.Pool, image.Name))
	if err != nil {
		return nil, fmt.Errorf("look for volumes of the image: %w", err)
	}
	var volumes []*corev1.PersistentVolume
	for _, obj := range found {
		if pv, ok := obj.(*corev1.PersistentVolume); ok && volume.MayBeIn(pv, image.FSID) {
			volumes = append(volumes, pv)
		}
	}
	// The index has no order, and messages about volumes must not vary between attempts.
	slices.SortFunc(volumes, func(a, b *corev1.PersistentVolume) int { return strings.Compare(a.Name, b.Name) })
	return volumes, nil
}

// Goes reports whether a volume and its image will be deleted together: the library does so
// in no other phase. Two such volumes of one image must not wait for each other.
func Goes(pv *corev1.PersistentVolume) bool {
	return pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete && pv.Status.Phase == corev1.VolumeReleased
}

// Stays returns a volume that names an image and will not be deleted with it, or nil. For a
// deleted volume's image, that may be another volume, or one restored from a backup.
func (v Volumes) Stays(image volume.ImageID) (*corev1.PersistentVolume, error) {
	volumes, err := v.Of(image)
	for _, pv := range volumes {
		if !Goes(pv) {
			return pv, nil
		}
	}
	return nil, err
}
