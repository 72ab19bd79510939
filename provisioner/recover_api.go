// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// annProvisionedBy is what the library writes on volumes.
const annProvisionedBy = "pv.kubernetes.io/provisioned-by"

// whereabout is a location where intents may be.
type whereabout struct {
	location volume.Location
	// key is the location as text, to compare.
	key string
	// place is where it leads, when that is known.
	place journal.Place
}

func newWhereabout(l volume.Location) whereabout {
	return whereabout{location: l, key: fmt.Sprint(l.Monitors, l.Pool, l.User, l.Secret)}
}

// whereabouts are the locations that our classes and volumes name. Pools that
// neither names any more are not looked at: nobody says who opens them.
func (r *recovery) whereabouts(ctx context.Context) []whereabout {
	logger := klog.FromContext(ctx)
	var list []whereabout
	seen := map[string]bool{}
	add := func(w whereabout) {
		if !seen[w.key] {
			seen[w.key] = true
			list = append(list, w)
		}
	}
	classes, err := r.config.Classes.List(labels.Everything())
	if err != nil {
		logger.Error(err, "Classes could not be listed") // a cache has no errors
	}
	for _, class := range classes {
		if class.Provisioner != r.config.Name {
			continue
		}
		location, err := storageclass.ParseLocation(class.Parameters)
		if err != nil {
			// Claims of the class say it in their events.
			continue
		}
		add(newWhereabout(location))
	}
	volumes, err := r.config.VolumeLister.List(labels.Everything())
	if err != nil {
		logger.Error(err, "Volumes could not be listed") // a cache has no errors
	}
	for _, pv := range volumes {
		if pv.Annotations[annProvisionedBy] != r.config.Name || !r.Owns(pv) {
			continue
		}
		record, err := volume.Read(pv)
		if err != nil || !record.Complete() {
			continue // made by another program
		}
		location, err := record.Location()
		if err != nil {
			continue
		}
		w := newWhereabout(location)
		w.place = journal.Place{FSID: record.FSID, Pool: record.Pool}
		add(w)
	}
	return list
}

// claimWaits reports whether the claim of an intent is there and wants a volume,
// or has one of the intent's name: then the image may be used.
func (r *recovery) claimWaits(ctx context.Context, in journal.Intent) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	claim, err := r.config.Claims.PersistentVolumeClaims(in.Namespace).Get(ctx, in.Claim, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the claim: %w", err)
	case string(claim.UID) != in.ClaimUID:
		return false, nil
	case claim.Spec.VolumeName == in.Volume:
		return true, nil
	}
	return claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil, nil
}

// hasVolume reports whether a volume names the image of an intent. The one that
// the attempt would have made is asked for at the server, since the cache may be
// behind; for others, made by hand, the cache will do.
func (r *recovery) hasVolume(ctx context.Context, place journal.Place, in journal.Intent) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	// A list of one, which needs no further permission.
	live, err := r.config.Volumes.PersistentVolumes().List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", in.Volume).String(),
	})
	if err != nil {
		return false, fmt.Errorf("read the volume: %w", err)
	}
	for i := range live.Items {
		pv := &live.Items[i]
		if volume.MayBeIn(pv, place.FSID) && slices.Contains(volume.ImageKeys(pv), volume.ImageKey(place.Pool, in.Image)) {
			return true, nil
		}
	}
	cached, err := r.volumesOf(place, in.Image)
	if err != nil {
		return false, err
	}
	// The one that was asked for may be a memory of the cache.
	return slices.ContainsFunc(cached, func(pv *corev1.PersistentVolume) bool { return pv.Name != in.Volume }), nil
}
