// SPDX-License-Identifier: Apache-2.0

package rbd

import (
	"context"
	"time"
)

// Trash is where a pool keeps deleted images that still have their data. An image there
// has no name that Pool's other calls would find; its ID names it. Pool says what holds
// for all calls.
type Trash interface {
	// TrashImage moves an image to the trash, in a time that does not depend on its size,
	// or continues a move that was cut off. Until keep has passed, "rbd trash purge" and
	// the like leave the image alone; RemoveTrashed does not wait for that. Clients that
	// have the image open keep it: look at Image.Watchers first.
	//
	// Mirroring of a primary ends. A full pool does not prevent the move.
	//
	// Errors: ErrImageNotFound; ErrNotSupported for a mirrored image that is not the primary;
	// with some releases (20.2.4), ErrImageHeld for an image in a group.
	TrashImage(ctx context.Context, name string, keep time.Duration) error
	// Trashed describes an image in the trash.
	//
	// Errors: ErrImageNotFound.
	Trashed(ctx context.Context, id string) (Trashed, error)
	// RemoveTrashed removes an image in the trash and its data. It is safe to repeat
	// after any error. Like RemoveImage it takes time in proportion to the image's size.
	//
	// Errors: ErrImageNotFound; ErrImageInUse if a client watches the image or is removing it,
	// or if its move to the trash was cut off and no other image has its name: then TrashImage
	// must continue the move; ErrImageHasSnapshots, as for the source of a clone;
	// ErrImageHeld for a member of a group.
	RemoveTrashed(ctx context.Context, id string) error
	// ShrinkTrashed removes the last objects of an image in the trash, at most that many,
	// and returns the size of what is left, which no client can restore any more. For an
	// image of no more objects, it does nothing and returns 0. It is safe to repeat.
	//
	// Errors: those of RemoveTrashed, before anything is removed.
	ShrinkTrashed(ctx context.Context, id string, objects uint64) (left uint64, err error)
	// HandOverTrashed has the cluster's manager remove an image in the trash. The manager
	// removes one image after the other, and goes on when this process ends. The call
	// waits only until the manager has accepted the task. Asking again is harmless, and
	// shows what became of it. The call runs beside others that name the image.
	//
	// Errors: ErrPermissionDenied without the cap mgr 'profile rbd'; ErrImageNotFound;
	// ErrManagerFailed if the manager was asked before and failed, as with an image that
	// is watched or has snapshots, and was told to leave it; others if no manager
	// answers. Whatever the error, RemoveTrashed may succeed.
	HandOverTrashed(ctx context.Context, id string) error
}

// Trashed is what a cluster says about an image in the trash.
type Trashed struct {
	// Name is the name that the image had.
	Name string
	// Since is when the image was moved there, by the clock of the client that moved it.
	Since time.Time
	// Moving says that the move to the trash was cut off, or still runs.
	Moving bool
}
