// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Fate is what Discard did with an image that an attempt may have left.
type Fate string

// The fates of images.
const (
	// Removed: Discard removed the attempt's image.
	Removed Fate = "removed"
	// Absent: there is no image; Discard removed any leftovers of one.
	Absent Fate = "absent"
	// Foreign: Discard left an image of another owner, unlike the wanted one, or with data.
	Foreign Fate = "foreign"
	// Kept: it is in use, has snapshots, or can't be looked at or removed: see the error.
	Kept Fate = "kept"
)

// Large is the size in bytes above which the removal of an image takes more than a moment:
// librbd deletes each object that the image could have. The trash removes it in parts.
const Large = 64 << 30

// Discard removes the image of an attempt whose claim is gone and which has no volume, if
// the image is surely that attempt's and unused; it calls trash for a large one. For a
// Foreign image, reason says why Discard left it.
func (m Maker) Discard(ctx context.Context, want Wanted, trash func(rbd.Image) error) (fate Fate, reason string, err error) {
	fate = Removed
	image, err := m.Pool.Image(ctx, want.Image.Name)
	switch {
	case err == nil:
		reason, err = m.notLeft(ctx, want, image)
	case errors.Is(err, rbd.ErrImageNotFound):
		fate, err = Absent, nil // but leftovers may still be there
	}
	if err != nil {
		return Kept, "", err
	}
	if reason != "" {
		return Foreign, reason, nil
	}
	if image.SizeBytes > Large {
		err = trash(image)
	} else {
		err = RemoveIfThere(ctx, m.Pool, want.Image.Name)
	}
	if err != nil {
		return Kept, "", err
	}
	return fate, "", nil
}

// notLeft says why an image is not the one that an attempt left; empty if it is. An error
// means that this can't be decided yet.
func (m Maker) notLeft(ctx context.Context, want Wanted, image rbd.Image) (string, error) {
	if whose := volume.Foreign(image.Metadata, want.Owner); whose != "" && !want.isFresh(image) {
		return whose, nil
	}
	// A provisioner that died stays a watcher for half a minute.
	if len(image.Watchers) > 0 {
		return "", rbd.ErrImageInUse
	}
	if len(image.Snapshots) > 0 {
		return "", rbd.ErrImageHasSnapshots
	}
	if len(image.Held) > 0 {
		return "", rbd.ErrImageHeld
	}
	if reason := want.differs(image); reason != "" {
		return reason, nil
	}
	if image.Metadata[metaFlattening] == flatteningPending {
		return "", nil // its data is the source's, and it has no volume yet
	}
	// While no provisioner ran, a person may have used the volume, and kept only its image.
	written, err := m.Pool.Written(ctx, want.Image.Name)
	if err != nil || !written {
		return "", err
	}
	return "it has data", nil
}
