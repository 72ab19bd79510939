// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"time"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// fence returns pool such that nothing is changed through it by a replica that
// may not lead any more: one that was halted for longer than its lease goes on
// in the middle of an operation. What librbd was in the middle of, it can't stop.
func (p *Provisioner) fence(pool rbd.Pool) rbd.Pool { return fencedPool{pool, p.config.Lease.Held} }

type fencedPool struct {
	rbd.Pool
	leading func() bool
}

// CreateImage implements rbd.Pool.
func (p fencedPool) CreateImage(ctx context.Context, name string, spec rbd.ImageSpec) error {
	if !p.leading() {
		return errNotStarted{lease.ErrNotLeading}
	}
	return p.Pool.CreateImage(ctx, name, spec)
}

// SetMetadata implements rbd.Pool.
func (p fencedPool) SetMetadata(ctx context.Context, name string, entries map[string]string) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.SetMetadata(ctx, name, entries)
}

// GrowImage implements rbd.Pool.
func (p fencedPool) GrowImage(ctx context.Context, name string, sizeBytes uint64) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.GrowImage(ctx, name, sizeBytes)
}

// RemoveImage implements rbd.Pool.
func (p fencedPool) RemoveImage(ctx context.Context, name string) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.RemoveImage(ctx, name)
}

// FinishRemovals implements rbd.Pool.
func (p fencedPool) FinishRemovals(ctx context.Context, names ...string) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.FinishRemovals(ctx, names...)
}

// TrashImage implements rbd.Trash.
func (p fencedPool) TrashImage(ctx context.Context, name string, keep time.Duration) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.TrashImage(ctx, name, keep)
}

// RemoveTrashed implements rbd.Trash.
func (p fencedPool) RemoveTrashed(ctx context.Context, id string) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.RemoveTrashed(ctx, id)
}

// SnapshotImage implements rbd.Clones.
func (p fencedPool) SnapshotImage(ctx context.Context, id, snapshot string) error {
	if !p.leading() {
		return errNotStarted{lease.ErrNotLeading}
	}
	return p.Pool.SnapshotImage(ctx, id, snapshot)
}

// CloneImage implements rbd.Clones.
func (p fencedPool) CloneImage(ctx context.Context, name string, spec rbd.CloneSpec) error {
	if !p.leading() {
		return errNotStarted{lease.ErrNotLeading}
	}
	return p.Pool.CloneImage(ctx, name, spec)
}

// RemoveSnapshot implements rbd.Clones.
func (p fencedPool) RemoveSnapshot(ctx context.Context, id, snapshot string) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.RemoveSnapshot(ctx, id, snapshot)
}

// FlattenImage implements rbd.Clones.
func (p fencedPool) FlattenImage(ctx context.Context, name string) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.FlattenImage(ctx, name)
}

// HandOverTrashed implements rbd.Trash.
func (p fencedPool) HandOverTrashed(ctx context.Context, id string) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.HandOverTrashed(ctx, id)
}

// SetNotes implements rbd.Notes.
func (p fencedPool) SetNotes(ctx context.Context, object string, notes map[string][]byte) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.SetNotes(ctx, object, notes)
}

// RemoveNotes implements rbd.Notes.
func (p fencedPool) RemoveNotes(ctx context.Context, object string, keys ...string) error {
	if !p.leading() {
		return lease.ErrNotLeading
	}
	return p.Pool.RemoveNotes(ctx, object, keys...)
}
