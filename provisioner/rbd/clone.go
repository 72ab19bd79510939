// SPDX-License-Identifier: Apache-2.0

package rbd

import "context"

// Clones makes images from others of the pool; they share data until it is changed (copy on
// write). A clone is made from a snapshot and depends on it: as long as there are clones, Ceph
// keeps a removed snapshot out of sight, and its image in the trash (clone format 2).
//
// Pool says what holds for all calls; the name in CloneImage is that of the new clone.
type Clones interface {
	// SnapshotImage makes a snapshot of the image with an ID. An existing snapshot of
	// that name is no error.
	//
	// Errors: ErrImageNotFound, ErrImageHeld, ErrPoolFull.
	SnapshotImage(ctx context.Context, id, snapshot string) error
	// CloneImage makes an image from another one's snapshot, of the same size, with the
	// feature layering, those that CreateImage would give, and FeatureOperations. Ceph
	// also copies the other one's metadata.
	//
	// Errors: ErrImageNotFound if there is no such source, or it has no such snapshot;
	// and those of CreateImage.
	CloneImage(ctx context.Context, name string, spec CloneSpec) error
	// RemoveSnapshot removes a snapshot of the image with an ID, in the trash or not. A
	// missing snapshot or image is no error.
	//
	// Errors: ErrImageInUse for a protected snapshot, ErrPoolFull.
	RemoveSnapshot(ctx context.Context, id, snapshot string) error
	// HasClone reports whether an image's snapshot knows of a clone; id and clone are the
	// images' IDs. A clone that it does not know is incomplete, and can't be opened once
	// the snapshot is removed.
	//
	// Errors: ErrImageNotFound, also if there is no such snapshot.
	HasClone(ctx context.Context, id, snapshot, clone string) (bool, error)
	// Snapshots returns the names of the snapshots of the image with an ID, as in
	// Image.Snapshots.
	//
	// Errors: ErrImageNotFound.
	Snapshots(ctx context.Context, id string) ([]string, error)
	// CloneDepth returns how many images an image depends on, one through the other: 0 if
	// it has no parent. A flattened image still depends on its former parent if an older
	// snapshot of it does.
	//
	// Errors: ErrImageNotFound.
	CloneDepth(ctx context.Context, name string) (int, error)
	// FlattenImage copies into a clone what it shares, until it depends on no other
	// image. Clients may use it meanwhile. It takes time in proportion to the image's
	// size; for that time this program watches the image. It goes on after ErrTimeout:
	// another FlattenImage of the image waits for it, no other call about the image does.
	// It is safe to repeat after any error. An image without a parent is no error.
	//
	// Meanwhile the caller must not clone the image, nor a snapshot from before: librbd
	// forgets that the new clone depends on the parent, too (seen with Ceph 16.2).
	//
	// Errors: ErrImageNotFound, ErrPoolFull.
	FlattenImage(ctx context.Context, name string) error
}

// CloneSpec describes a clone to be made.
type CloneSpec struct {
	// Source is the name of the image whose content the clone gets, Snapshot the name of
	// its snapshot.
	Source, Snapshot string
	// DataPool is as in ImageSpec. It need not be the source's.
	DataPool string
}
