// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// objectSize is how much of an image is in an object.
const objectSize = 4 << 20

// trashed is an image in the trash.
type trashed struct {
	image *image
	name  string
	since time.Time
	// removing means that a RemoveImage of the image was interrupted, moving that a
	// TrashImage was.
	removing, moving bool
	// empty means that a RemoveTrashed was interrupted: only the entry is left. ending
	// means that a part of the image was removed.
	empty, ending bool
	// handedOver means that the manager is to remove the image, failed that it could not.
	handedOver, failed bool
}

// Trash returns the sorted names that the images in a pool's trash had.
func (c *Cluster) Trash(pool string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for _, t := range c.mustPool(pool).trash {
		names = append(names, t.name)
	}
	slices.Sort(names)
	return names
}

// TrashedSize returns the size of an image in the trash, and whether it is there.
func (c *Cluster) TrashedSize(pool, id string) (size uint64, there bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.mustPool(pool).trash[id]
	if t == nil {
		return 0, false
	}
	return t.image.size, true
}

// Restore takes an image out of the trash, as "rbd trash restore" does.
func (c *Cluster) Restore(pool, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.mustPool(pool)
	t := p.trash[id]
	if t == nil {
		panic(fmt.Sprintf("rbdtest: the test has no image %q in the trash of pool %q", id, pool))
	}
	if t.ending {
		panic(fmt.Sprintf("rbdtest: image %q can't be restored any more", t.name))
	}
	delete(p.trash, id)
	p.images[t.name] = t.image
}

// newID names a new image. c.mu is held.
func (c *Cluster) newID() string {
	c.images++
	return fmt.Sprintf("%x", 0x1000+c.images)
}

// FinishRemovals implements rbd.Pool.
func (p *pool) FinishRemovals(ctx context.Context, names ...string) error {
	_, err := callNotes(ctx, p, CallFinishRemovals, "finish", "rbd_trash", func() (struct{}, error) {
		for id, t := range p.state.trash {
			if t.removing && slices.Contains(names, t.name) {
				t.image.leaveParent()
				delete(p.state.trash, id)
			}
		}
		return struct{}{}, nil
	})
	return err
}

// TrashImage implements rbd.Trash.
func (p *pool) TrashImage(ctx context.Context, name string, _ time.Duration) error {
	_, err := call(ctx, p, CallTrashImage, "move to the trash", name, func() (struct{}, error) {
		return struct{}{}, p.state.trashImage(name)
	})
	return err
}

// Trashed implements rbd.Trash.
func (p *pool) Trashed(ctx context.Context, id string) (rbd.Trashed, error) {
	return callTrash(ctx, p, CallTrashed, "look up", id, func(t *trashed) (rbd.Trashed, error) {
		return rbd.Trashed{Name: t.name, Since: t.since, Moving: t.moving}, nil
	})
}

// RemoveTrashed implements rbd.Trash.
func (p *pool) RemoveTrashed(ctx context.Context, id string) error {
	_, err := callTrash(ctx, p, CallRemoveTrashed, "remove", id, func(*trashed) (struct{}, error) {
		return struct{}{}, p.state.removeTrashed(id, p.session.caps)
	})
	return err
}

// ShrinkTrashed implements rbd.Trash.
func (p *pool) ShrinkTrashed(ctx context.Context, id string, objects uint64) (uint64, error) {
	return callTrash(ctx, p, CallShrinkTrashed, "shrink", id, func(t *trashed) (uint64, error) {
		part := objects * objectSize
		if t.empty {
			return 0, rbd.ErrImageNotFound
		}
		if t.image.size <= part {
			return 0, nil
		}
		if err := p.state.removable(t, p.session.caps); err != nil {
			return 0, err
		}
		t.moving, t.ending = false, true
		t.image.size = (t.image.size - 1) / part * part
		return t.image.size, nil
	})
}

// callTrash makes one call about an image in the trash. It locks the ID like a name.
func callTrash[T any](ctx context.Context, p *pool, kind Call, attempt, id string, f func(*trashed) (T, error)) (T, error) {
	value, err := callImage(ctx, p, kind, id, func() (T, error) {
		t := p.state.trash[id]
		if t == nil || p.state.deleted {
			var none T
			return none, rbd.ErrImageNotFound
		}
		return f(t)
	})
	if err != nil {
		err = fmt.Errorf("%s image %q in the trash of pool %q: %w", attempt, id, p.state.name, err)
	}
	return value, err
}

// The calls once they have reached the cluster. The caller holds Cluster.mu.

func (p *poolState) trashImage(name string) error {
	i := p.images[name]
	switch {
	case p.deleted:
		return rbd.ErrImageNotFound
	case i != nil:
		p.moveToTrash(name)
		return nil
	}
	for _, t := range p.trash {
		if t.name == name && t.moving {
			t.moving = false
			return nil
		}
	}
	return rbd.ErrImageNotFound
}

// moveToTrash moves an existing image.
func (p *poolState) moveToTrash(name string) *trashed {
	t := &trashed{image: p.images[name], name: name, since: time.Now()}
	delete(p.images, name)
	p.trash[t.image.id] = t
	return t
}

// removing returns the image that had a name, if its removal was interrupted.
func (p *poolState) removing(name string) *trashed {
	for _, t := range p.trash {
		if t.removing && t.name == name {
			return t
		}
	}
	return nil
}

func (p *poolState) removeTrashed(id string, caps Caps) error {
	t := p.trash[id]
	if err := p.removable(t, caps); err != nil {
		return err
	}
	t.image.leaveParent()
	delete(p.trash, id)
	return nil
}

// removable returns an error that says why an image can't be removed from the trash.
func (p *poolState) removable(t *trashed, caps Caps) error {
	switch {
	case len(t.image.snapshots) > 0:
		return rbd.ErrImageHasSnapshots
	case len(t.image.watchers) > 0, t.moving && p.images[t.name] == nil:
		return rbd.ErrImageInUse
	case len(t.image.held) > 0:
		return rbd.ErrImageHeld
	case t.image.dataPool != "" && !caps.allow(t.image.dataPool):
		return rbd.ErrPermissionDenied
	}
	return nil
}

// emptyTrashed is removeTrashed without the last step.
func (p *poolState) emptyTrashed(id string, caps Caps) {
	if t := p.trash[id]; t != nil && p.removeTrashed(id, caps) == nil {
		t.empty = true
		p.trash[id] = t
	}
}
