// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Fate is what became of an image that an attempt may have left.
type Fate string

// The fates of images.
const (
	// Removed: it was the attempt's, and was removed.
	Removed Fate = "removed"
	// Absent: there is none; remains of one were removed.
	Absent Fate = "absent"
	// Foreign: it is somebody else's, or has data. It was left.
	Foreign Fate = "foreign"
	// Kept: it is in use, or could not be looked at or removed. An error says why.
	Kept Fate = "kept"
)

// Discard removes the image that an attempt left whose claim is gone and that has no
// volume, if it is surely that attempt's and unused. Of a Foreign one, reason says why
// it was left.
func (m Maker) Discard(ctx context.Context, want Wanted) (fate Fate, reason string, err error) {
	name := want.Image.Name
	image, err := m.Pool.Image(ctx, name)
	if errors.Is(err, rbd.ErrImageNotFound) {
		// Remains of one may still be there.
		if err := RemoveIfThere(ctx, m.Pool, name); err != nil {
			return Kept, "", err
		}
		return Absent, "", nil
	}
	if err != nil {
		return Kept, "", err
	}
	if reason, err = m.notLeft(ctx, want, image); err != nil {
		return Kept, "", err
	}
	if reason != "" {
		return Foreign, reason, nil
	}
	if err := RemoveIfThere(ctx, m.Pool, name); err != nil {
		return Kept, "", err
	}
	return Removed, "", nil
}

// notLeft says why an image is not what an attempt left, or returns an empty text. An
// error says that it can't be told yet.
func (m Maker) notLeft(ctx context.Context, want Wanted, image rbd.Image) (string, error) {
	if whose := volume.Foreign(image.Metadata, want.Owner); whose != "" && !want.isFresh(image) {
		return whose, nil
	}
	// A provisioner that died is a watcher for half a minute.
	if len(image.Watchers) > 0 {
		return "", rbd.ErrImageInUse
	}
	if len(image.Snapshots) > 0 {
		return "", rbd.ErrImageHasSnapshots
	}
	if reason := want.differs(image); reason != "" {
		return reason, nil
	}
	if image.Metadata[metaFlattening] == flatteningPending {
		return "", nil // it has data, and no volume yet
	}
	// The volume may have been saved, used, and deleted by somebody who wants to keep
	// the image, while no provisioner ran.
	written, err := m.Pool.Written(ctx, want.Image.Name)
	if err != nil || !written {
		return "", err
	}
	return "it has data", nil
}
