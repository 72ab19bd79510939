// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"time"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Pool is an open pool, with what was learned on the way to it. Each call needs the
// lease where it changes something, and tells the gate how it ended.
type Pool struct {
	rbd.Pool
	// FSID is the identity of the cluster.
	FSID string
	// Monitors are those that the location named, as addresses.
	Monitors Monitors

	visit *visit
}

// Close implements rbd.Pool.
func (p *Pool) Close() {
	p.Pool.Close()
	p.visit.leave()
}

// around is what each call to a pool goes through, from the outside in: the lease
// first, so that a refusal does not count as an answer of the cluster.
func (a *Access) around(v *visit) func(context.Context, rbd.Op, func(context.Context) error) error {
	return func(ctx context.Context, op rbd.Op, call func(context.Context) error) error {
		if err := a.fence(op); err != nil {
			return err
		}
		v.begins(op)
		began := time.Now()
		err := call(ctx)
		v.ends(op, began, err)
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
