// SPDX-License-Identifier: Apache-2.0

package rbd

import "context"

// Clones makes images from others of the pool, which share their data until it is
// changed (copy on write). A clone is made from a snapshot, and depends on it:
// Ceph keeps it out of sight after its removal, and its image in the trash, as
// long as there are clones (clone format 2).
//
// Calls that name the same image run one after the other, like those of Pool, where
// a clone is named by what it is to be called. All may return ErrTimeout, also with
// ErrImageBusy, ErrConnectionLost or ErrPermissionDenied.
type Clones interface {
	// SnapshotImage makes a snapshot of an image, which is named by its ID. That it
	// has one of that name is no error.
	//
	// Errors: ErrImageNotFound, ErrPoolFull.
	SnapshotImage(ctx context.Context, id, snapshot string) error
	// CloneImage makes an image from another one's snapshot, of its size, with
	// the feature layering, those that CreateImage would give and
	// FeatureOperations. Ceph copies the other one's metadata, too.
	//
	// Errors: ErrImageNotFound when there is no such source, or it has no such
	// snapshot; and those of CreateImage.
	CloneImage(ctx context.Context, name string, spec CloneSpec) error
	// RemoveSnapshot removes a snapshot of an image, which is named by its ID,
	// whether it is in the trash or not. One that clones depend on is kept out
	// of sight. That there is no such snapshot or image is no error.
	//
	// Errors: ErrImageInUse for a snapshot that is protected, ErrPoolFull.
	RemoveSnapshot(ctx context.Context, id, snapshot string) error
	// HasClone reports whether an image's snapshot knows of a clone, where both
	// images are named by their IDs. A clone that it does not know of was not made
	// to the end, and can't be opened any more once the snapshot is removed.
	//
	// Errors: ErrImageNotFound, also when there is no such snapshot.
	HasClone(ctx context.Context, id, snapshot, clone string) (bool, error)
	// Snapshots returns the names of the snapshots of an image, which is named by
	// its ID, as Image.Snapshots has them.
	//
	// Errors: ErrImageNotFound.
	Snapshots(ctx context.Context, id string) ([]string, error)
	// CloneDepth returns how many images an image depends on, one through the
	// other: 0 when it has no parent. An image that was flattened still depends on
	// its former parent where it does so through an older snapshot.
	//
	// Errors: ErrImageNotFound.
	CloneDepth(ctx context.Context, name string) (int, error)
	// FlattenImage copies into a clone what it shares, until it depends on no
	// other image. Clients may use it meanwhile. It takes time in proportion to
	// the image's size, during which this program is one of its watchers, and
	// goes on after ErrTimeout, when a further call about the same image waits
	// for it; it keeps no other call about the image waiting. It is safe to
	// repeat after any error. That the image has no parent is no error.
	//
	// No clone of the image may be made meanwhile, or from a snapshot of before: librbd
	// forgets that it depends on the parent, too (seen with Ceph 16.2).
	//
	// Errors: ErrImageNotFound, ErrPoolFull.
	FlattenImage(ctx context.Context, name string) error
}

// CloneSpec describes a clone to be made.
type CloneSpec struct {
	// Source is the name of the image whose content the clone gets, Snapshot that
	// of its snapshot.
	Source, Snapshot string
	// DataPool is that of ImageSpec. It need not be the source's.
	DataPool string
}
