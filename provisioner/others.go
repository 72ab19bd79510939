// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	// freshFor is for how long after the cache has shown that a volume was released
	// it is believed to know all volumes that name the same image. What was in the
	// API before that, it knows for certain: it is told of all volumes in the order
	// of their changes.
	// It is longer than a call to Ceph may take, so that one request does for an attempt.
	freshFor = 20 * time.Second
	// cachePoll is how often it is looked whether the cache has caught up, which
	// takes some milliseconds.
	cachePoll = 10 * time.Millisecond
)

// reasonImageInTrash is the event about a volume whose image is in the trash.
const reasonImageInTrash = "ImageInTrash"

// indexByImage finds volumes by the keys of volume.ImageKeys.
const indexByImage = "image"

// VolumeIndexers are those that the cache of volumes needs.
func VolumeIndexers() cache.Indexers {
	return cache.Indexers{indexByImage: func(obj any) ([]string, error) {
		pv, ok := obj.(*corev1.PersistentVolume)
		if !ok {
			return nil, nil
		}
		return volume.ImageKeys(pv), nil
	}}
}

// volumesOf returns the volumes in the cache that may name an image, whoever made them.
func (p *Provisioner) volumesOf(place journal.Place, image string) ([]*corev1.PersistentVolume, error) {
	found, err := p.config.VolumeIndex.ByIndex(indexByImage, volume.ImageKey(place.Pool, image))
	if err != nil {
		return nil, fmt.Errorf("look for volumes of the image: %w", err)
	}
	var volumes []*corev1.PersistentVolume
	for _, obj := range found {
		if pv, ok := obj.(*corev1.PersistentVolume); ok && volume.MayBeIn(pv, place.FSID) {
			volumes = append(volumes, pv)
		}
	}
	// The index has no order, and what is said of them is to be the same at each attempt.
	slices.SortFunc(volumes, func(a, b *corev1.PersistentVolume) int { return strings.Compare(a.Name, b.Name) })
	return volumes, nil
}

// goes reports whether a volume is to go together with its image. Of two such volumes
// none may wait for the other.
func goes(pv *corev1.PersistentVolume) bool {
	return pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete &&
		(pv.Status.Phase == corev1.VolumeReleased || pv.Status.Phase == corev1.VolumeFailed)
}

// checkOthers returns an error while a volume other than the one that is deleted names
// its image.
func (d deletion) checkOthers() error {
	volumes, err := d.volumesOf(d.place(), d.record.Image)
	if err != nil {
		return err
	}
	for _, pv := range volumes {
		if pv.UID == d.pv.UID && pv.Name == d.pv.Name || goes(pv) {
			continue
		}
		return fmt.Errorf("%s is also that of volume %q%s: it is removed once that volume is gone; if that one is in another Ceph cluster, "+
			"set its annotation %s to what \"ceph fsid\" prints there", d.what(), pv.Name, claimOf(pv), volume.AnnClusterFSID)
	}
	return nil
}

// claimOf says in brackets which claim has a volume.
func claimOf(pv *corev1.PersistentVolume) string {
	if ref := pv.Spec.ClaimRef; ref != nil {
		return fmt.Sprintf(" (claim %s/%s)", ref.Namespace, ref.Name)
	}
	return ""
}

// catchUp returns once the cache has all volumes that are in the API by now, and reports
// whether it had to wait for that. Where the cache was told a moment ago that the volume
// was released, it has them: no request is made. Otherwise the volume itself is changed,
// and the cache will have seen all earlier changes when it shows this one. That costs one
// request, however many volumes there are.
func (d deletion) catchUp(ctx context.Context) (waited bool, err error) {
	if _, fresh := d.released.Get(versionOf(d.pv)); fresh {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	begun := time.Now().UTC().Format(time.RFC3339Nano)
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":         d.pv.UID,
		"annotations": map[string]string{volume.AnnDeletionBegun: begun},
	}})
	if err != nil {
		return true, err
	}
	if _, err := d.config.Volumes.PersistentVolumes().Patch(ctx, d.pv.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		return true, fmt.Errorf("note in the volume that its image is about to be removed: %w", err)
	}
	err = wait.PollUntilContextCancel(ctx, cachePoll, true, func(context.Context) (bool, error) {
		cached, err := d.config.VolumeLister.Get(d.pv.Name)
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil && cached.Annotations[volume.AnnDeletionBegun] == begun, err
	})
	if err != nil {
		return true, fmt.Errorf("the volumes that are known here lag behind those in the API, and one that names the same image may be among them: "+
			"it is tried again by itself: %w", err)
	}
	return true, nil
}

// versionOf identifies one version of one volume.
func versionOf(pv *corev1.PersistentVolume) string { return string(pv.UID) + "/" + pv.ResourceVersion }

// noteReleased remembers for a while that the cache has shown this version of a
// volume.
func (p *Provisioner) noteReleased(pv *corev1.PersistentVolume) {
	if goes(pv) {
		p.released.Set(versionOf(pv), true, freshFor)
	}
}

// restored returns a volume that names an image which is in the trash since its volume
// was deleted, or nil. It may be another volume, or one that was restored from a backup.
func (p *Provisioner) restored(place journal.Place, removal journal.Removal) (*corev1.PersistentVolume, error) {
	volumes, err := p.volumesOf(place, removal.Image)
	if err != nil {
		return nil, err
	}
	for _, pv := range volumes {
		// The one that was deleted goes, too, unless somebody has changed his mind.
		if !goes(pv) {
			return pv, nil
		}
	}
	return nil, nil
}
