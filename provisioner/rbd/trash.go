// SPDX-License-Identifier: Apache-2.0

package rbd

import (
	"context"
	"time"
)

// Trash is where a pool keeps images that were deleted and still have their
// data. An image there has no name that Pool's other calls would find; its ID
// names it.
//
// Calls that name the same image run one after the other, like those of Pool. All
// may return ErrTimeout, also with ErrImageBusy, ErrConnectionLost or
// ErrPermissionDenied.
type Trash interface {
	// TrashImage moves an image to the trash, in a time that does not depend on
	// its size, and goes on with a move that was cut off. Until keep has passed,
	// "rbd trash purge" and the like leave the image alone; RemoveTrashed does
	// not ask. Clients that have the image open keep it: look at Image.Watchers
	// before.
	//
	// Errors: ErrImageNotFound. A full pool is no obstacle, but for one whose
	// trash was never used: ErrPoolFull.
	TrashImage(ctx context.Context, name string, keep time.Duration) error
	// Trashed describes an image in the trash.
	//
	// Errors: ErrImageNotFound.
	Trashed(ctx context.Context, id string) (Trashed, error)
	// RemoveTrashed removes an image in the trash and its data. It is safe to
	// repeat after any error. Like RemoveImage it takes time in proportion to
	// the image's size.
	//
	// Errors: ErrImageNotFound; ErrImageInUse when a client watches it, or while
	// another one is removing it, or when its move to the trash was cut off,
	// nobody else has its name, and so TrashImage has to go on with that;
	// ErrImageHasSnapshots, as the source of a clone has.
	RemoveTrashed(ctx context.Context, id string) error
	// HandOverTrashed has the cluster's manager remove an image in the trash, one
	// after the other, which goes on when this process ends. It waits until the
	// manager has taken that on, not for the removal. Asking again is harmless, and
	// shows what became of it. It runs beside other calls that name the image.
	//
	// Errors: ErrPermissionDenied without the cap mgr 'profile rbd'; ErrImageNotFound;
	// ErrManagerFailed when the manager, asked before, tried in vain, as with an
	// image that is watched or has snapshots, and was told to leave it; others where
	// no manager answers. Whatever the error, RemoveTrashed may do.
	HandOverTrashed(ctx context.Context, id string) error
}

// Trashed is what a cluster says about an image in the trash.
type Trashed struct {
	// Name is the one that the image had.
	Name string
	// Since is when it was moved there, by the clock of who did it, in whole
	// seconds or finer.
	Since time.Time
	// Moving says that its move to the trash was cut off, or goes on.
	Moving bool
}
