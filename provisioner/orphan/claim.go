// SPDX-License-Identifier: Apache-2.0

package orphan

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// claimWaits reports whether the claim of an intent exists and waits for a volume, or
// has the intent's volume: then the image may be used.
func (v visit) claimWaits(ctx context.Context, in journal.Intent) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	claim, err := v.Claims.PersistentVolumeClaims(in.Namespace).Get(ctx, in.Claim, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the claim: %w", err)
	}
	has := claim.Spec.VolumeName
	return string(claim.UID) == in.ClaimUID && (has == in.Volume || has == "" && claim.DeletionTimestamp == nil), nil
}

// hasVolume reports whether a volume names the image of an intent. It asks the server
// for the volume that the attempt would have made, since the cache may be behind; for
// other volumes, made by hand, the cache will do.
func (v visit) hasVolume(ctx context.Context, in journal.Intent) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	// Listing one needs no further permission.
	live, err := v.Volumes.PersistentVolumes().List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", in.Volume).String(),
	})
	if err != nil {
		return false, fmt.Errorf("read the volume: %w", err)
	}
	for i := range live.Items {
		pv := &live.Items[i]
		if volume.MayBeIn(pv, v.pool.ID.FSID) && slices.Contains(volume.ImageKeys(pv), volume.ImageKey(v.pool.ID.Pool, in.Image)) {
			return true, nil
		}
	}
	cached, err := v.Index.Of(v.pool.ID.Image(in.Image))
	if err != nil {
		return false, err
	}
	// The cache may still show the volume that the server no longer has.
	return slices.ContainsFunc(cached, func(pv *corev1.PersistentVolume) bool { return pv.Name != in.Volume }), nil
}
