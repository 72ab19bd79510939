// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/monitors"
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
	Monitors monitors.Addresses

	visit   *visit
	changed atomic.Bool
}

// Changed reports whether a call through this pool may have changed an image, even if it
// failed, unless the error is a plain no. Notes and snapshots do not count: they make no
// image and do not affect a claim's, and an earlier note finds a leftover snapshot.
func (p *Pool) Changed() bool { return p.changed.Load() }

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
		p.visit.slow.Store(op.Slow)
		began := time.Now()
		err := call(ctx)
		p.visit.ends(op, began, err)
		if mayHaveChanged(op, err) {
			p.changed.Store(true)
		}
		a.config.Observe(op.Name, time.Since(began), err)
		return err
	}
}

// mayHaveChanged reports whether a call that returned err may have changed an image.
func mayHaveChanged(op rbd.Op, err error) bool {
	switch op.Name {
	case rbd.OpSetNotes, rbd.OpRemoveNotes, rbd.OpSnapshotImage, rbd.OpRemoveSnapshot:
		return false
	case rbd.OpCreateImage, rbd.OpCloneImage:
		// These errors say that neither this call made an image nor an earlier attempt.
		// ErrImageExists does not: the image may be that of an earlier attempt. Nor does a
		// full pool: the call may have met it half-way.
		return !errors.Is(err, rbd.ErrPermissionDenied) && !errors.Is(err, rbd.ErrPoolNotFound) &&
			!errors.Is(err, rbd.ErrNotSupported)
	}
	return op.Changes
}
