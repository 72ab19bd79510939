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

// Pool is an open pool, with what was learned on the way to it. Each call needs the
// lease where it changes something, and tells the gate how it ended.
type Pool struct {
	rbd.Pool
	// ID says which pool it is, Location how it was opened.
	ID       volume.PoolID
	Location volume.Location
	// Monitors are those that the location named, as addresses.
	Monitors Monitors

	visit *visit
	// changes counts the calls that have changed an image, or may have.
	changes atomic.Int64
}

// Changed reports whether a call through this pool may have changed an image: from when
// the first such call was begun, also after an error, unless that is a plain no. Notes
// and snapshots do not count, since they make no image and no difference to a claim's:
// a snapshot that is left is found by a note of before.
func (p *Pool) Changed() bool { return p.changes.Load() > 0 }

// Close implements rbd.Pool.
func (p *Pool) Close() {
	p.Pool.Close()
	p.visit.leave()
}

// around is what each call to a pool goes through, from the outside in: the lease
// first, so that a refusal neither counts as an answer of the cluster nor as a change.
func (a *Access) around(p *Pool) func(context.Context, rbd.Op, func(context.Context) error) error {
	return func(ctx context.Context, op rbd.Op, call func(context.Context) error) error {
		if err := a.fence(op); err != nil {
			return err
		}
		p.begins(op)
		p.visit.begins(op)
		began := time.Now()
		err := call(ctx)
		p.visit.ends(op, began, err)
		p.ends(op, err)
		if a.observe != nil {
			a.observe(op.Name, time.Since(began), err)
		}
		return err
	}
}

// fence refuses to change anything for a replica that may not lead any more: one that
// was halted for longer than its lease goes on in the middle of an operation. What
// librbd was in the middle of, it can't stop.
func (a *Access) fence(op rbd.Op) error {
	if op.Changes && !a.lease.Held() {
		return lease.ErrNotLeading
	}
	return nil
}

// begins tells the gate of a call that is about to be made.
func (v *visit) begins(op rbd.Op) {
	if op.Slow {
		v.setRemoving(true)
	}
}

// ends tells the gate of a call that was made. Ceph's manager, which HandOverTrashed
// asks, says nothing about the pool, whether it answers or not.
func (v *visit) ends(op rbd.Op, began time.Time, err error) {
	if op.Name != rbd.OpHandOverTrashed {
		v.saw(began, err)
	}
	if op.Slow {
		v.setRemoving(false)
	}
}

// begins counts a call that may change an image, ends takes one back that did not.
func (p *Pool) begins(op rbd.Op) {
	if changesImage(op) {
		p.changes.Add(1)
	}
}

func (p *Pool) ends(op rbd.Op, err error) {
	if changesImage(op) && plainNo(op, err) {
		p.changes.Add(-1)
	}
}

func changesImage(op rbd.Op) bool {
	switch op.Name {
	case rbd.OpSetNotes, rbd.OpRemoveNotes, rbd.OpSnapshotImage, rbd.OpRemoveSnapshot:
		return false
	}
	return op.Changes
}

// plainNo reports whether an error says that an image was not made, and that there is
// none either that an earlier attempt made. A full pool may have been met half-way.
func plainNo(op rbd.Op, err error) bool {
	if op.Name != rbd.OpCreateImage && op.Name != rbd.OpCloneImage {
		return false
	}
	return errors.Is(err, rbd.ErrPermissionDenied) || errors.Is(err, rbd.ErrPoolNotFound) || errors.Is(err, rbd.ErrNotSupported)
}
