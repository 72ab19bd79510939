// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Pool is an open pool, with what Open learned on the way to it.
type Pool struct {
	rbd.Pool
	// ID says which pool it is, Location how it was opened.
	ID       volume.PoolID
	Location volume.Location
	// Monitors are the location's monitors, with their names resolved.
	Monitors Monitors

	visit *visit
	// changes counts the calls that have changed an image, or may have.
	changes atomic.Int64
}

// Changed reports whether a call through this pool may have changed an image: from the
// start of the first such call, even if that fails, unless the error is a plain no. Notes
// and snapshots do not count: they make no image and do not affect a claim's, and an
// earlier note finds a snapshot that is left over.
func (p *Pool) Changed() bool { return p.changes.Load() > 0 }

// Close implements rbd.Pool.
func (p *Pool) Close() {
	p.Pool.Close()
	p.visit.leave()
}

// around returns what each call to a pool goes through, from the outside in. The lease
// comes first, so that a refusal counts neither as an answer of the cluster nor as a
// change: a replica that was halted for longer than its lease resumes in the middle of an
// operation. What librbd has already begun can't be stopped.
func (a *Access) around(p *Pool) func(context.Context, rbd.Op, func(context.Context) error) error {
	return func(ctx context.Context, op rbd.Op, call func(context.Context) error) error {
		if op.Changes && !a.config.Lease.Held() {
			return lease.ErrNotLeading
		}
		changes := changesImage(op)
		if changes {
			p.changes.Add(1)
		}
		p.visit.slow.Store(op.Slow)
		began := time.Now()
		err := call(ctx)
		p.visit.ends(op, began, err)
		if changes && plainNo(op, err) {
			p.changes.Add(-1)
		}
		return err
	}
}

func changesImage(op rbd.Op) bool {
	switch op.Name {
	case rbd.OpSetNotes, rbd.OpRemoveNotes, rbd.OpSnapshotImage, rbd.OpRemoveSnapshot:
		return false
	}
	return op.Changes
}

// plainNo reports whether an error says that the call made no image, and that no earlier
// attempt made one either. A full pool says neither: the call may have met it half-way.
func plainNo(op rbd.Op, err error) bool {
	if op.Name != rbd.OpCreateImage && op.Name != rbd.OpCloneImage {
		return false
	}
	return errors.Is(err, rbd.ErrPermissionDenied) || errors.Is(err, rbd.ErrPoolNotFound) || errors.Is(err, rbd.ErrNotSupported)
}
