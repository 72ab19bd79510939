// SPDX-License-Identifier: Apache-2.0

package rbd

import (
	"errors"
	"fmt"
)

// The errors on which callers decide. A Connector returns them wrapped, with what was
// attempted in front. Their texts reach people in events, so they use words, not numbers.
var (
	// ErrUnreachable: no monitor answered in time. Nothing was changed.
	ErrUnreachable = errors.New("no monitor answered")
	// ErrTimeout: the call did not end before its deadline, and may have taken effect, or
	// may still do so.
	ErrTimeout = errors.New("no answer in time, the outcome is unknown")
	// ErrNoOSD: no OSD has answered on this user's connection, which is how Ceph 18 and newer
	// treat a user without any caps for OSDs. Nothing was changed. It is an ErrTimeout.
	ErrNoOSD = fmt.Errorf("no OSD has answered this user: %w", ErrTimeout)
	// ErrImageBusy: an earlier call on the image outlived its own deadline and this
	// call's, which did nothing. It comes with ErrTimeout.
	ErrImageBusy = errors.New("an earlier call on it has not ended")
	// ErrConnectionLost: the cluster has shut this client out, or the connection broke. The
	// outcome is unknown; the next Connect makes a new connection.
	ErrConnectionLost = errors.New("the connection to the cluster was lost")
	// ErrPermissionDenied: wrong key, unknown user, or caps that do not allow the call.
	ErrPermissionDenied = errors.New("permission denied")
	// ErrInvalidKey: the text is not a cephx key.
	ErrInvalidKey = errors.New("malformed key")
	// ErrKeyType: the key is of a type that this program's librados does not know.
	ErrKeyType = errors.New("this program can't use a key of this type")
	// ErrPoolNotFound: the cluster has no pool of that name.
	ErrPoolNotFound = errors.New("pool does not exist")
	// ErrPoolFull: the pool or the cluster is full, or over its quota.
	ErrPoolFull = errors.New("pool is full or over its quota")
	// ErrImageExists: an image of that name, or leftovers of one, exists.
	ErrImageExists = errors.New("image exists")
	// ErrImageNotFound: no image of that name can be opened. Leftovers may hold the name.
	ErrImageNotFound = errors.New("image does not exist")
	// ErrImageInUse: a client watches the image.
	ErrImageInUse = errors.New("image is in use")
	// ErrImageHeld: Image.Held says by what.
	ErrImageHeld = errors.New("image is held by a group or by mirroring")
	// ErrImageHasSnapshots: the image has snapshots, and maybe clones of them.
	ErrImageHasSnapshots = errors.New("image has snapshots")
	// ErrManagerFailed: the cluster's manager could not remove an image; it does not retry.
	ErrManagerFailed = errors.New("not removed by Ceph's manager, which tried")
	// ErrNotSupported: the cluster does not know the call, or refuses an argument, such as
	// a data pool that can't be one.
	ErrNotSupported = errors.New("not supported by the cluster")
	// ErrErasureCoded: the pool itself is one that can only be a data pool.
	ErrErasureCoded = errors.New("an erasure-coded pool can't hold images")
)
