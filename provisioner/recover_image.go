// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// removeLeft removes the image of an intent, whose claim is gone and that has no
// volume, if it is surely ours and unused.
func (r *recovery) removeLeft(ctx context.Context, pool rbd.Pool, place journal.Place, in journal.Intent) (Outcome, error) {
	logger := klog.FromContext(ctx)
	image, err := pool.Image(ctx, in.Image)
	if errors.Is(err, rbd.ErrImageNotFound) {
		// Remains of one may still be there.
		if err := removeIfThere(ctx, pool, in.Image); err != nil {
			return OutcomeKept, err
		}
		return outcomeAbsent, nil
	}
	if err != nil {
		return OutcomeKept, err
	}
	reason, err := r.notOurs(ctx, pool, place, in, image)
	switch {
	case errors.Is(err, rbd.ErrImageNotFound):
		return outcomeWaiting, err
	case err != nil:
		return OutcomeKept, err
	case reason != "":
		logger.Info("Left an image of the name that an earlier attempt wanted for a claim that is gone", "reason", reason)
		return OutcomeForeign, nil
	}
	if err := removeIfThere(ctx, pool, in.Image); err != nil {
		return OutcomeKept, err
	}
	logger.Info("Removed an image that an earlier attempt made for a claim that is gone")
	return OutcomeRemoved, nil
}

// notOurs says why an image is not what the intent's attempt made, or returns an
// empty text. An error says that it can't be told yet.
func (r *recovery) notOurs(ctx context.Context, pool rbd.Pool, place journal.Place, in journal.Intent, image rbd.Image) (string, error) {
	wanted := request{image: in.Image, pvName: in.Volume, sizeBytes: in.SizeBytes}
	wanted.params.DataPool = in.DataPool
	wanted.origin = originOf(in)
	if wanted.params.DataPool == place.Pool {
		wanted.params.DataPool = "" // counts as none
	}
	owner := r.ownedBy(in.Volume)
	if whose := volume.Foreign(image.Metadata, owner); whose != "" && !wanted.origin.isFresh(image, owner) {
		return whose, nil
	}
	// One that died is a watcher for half a minute.
	if len(image.Watchers) > 0 {
		return "", rbd.ErrImageInUse
	}
	if len(image.Snapshots) > 0 {
		return "", rbd.ErrImageHasSnapshots
	}
	if reason := conflict(image, wanted, owner); reason != "" {
		return reason, nil
	}
	if image.Metadata[metaFlattening] == flatteningPending {
		return "", nil // it has data, and no volume yet
	}
	// The volume may have been saved, used, and deleted by somebody who wants
	// to keep the image, while no provisioner ran.
	written, err := pool.Written(ctx, in.Image)
	if err != nil {
		return "", err
	}
	if written {
		return "it has data", nil
	}
	return "", nil
}
