// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// snapshot is a snapshot of an image. One without a name was removed, and is kept for
// clones.
type snapshot struct {
	name string
	// clones counts the images that depend on it.
	clones int
	// written and data are the image's at the time of the snapshot.
	written bool
	data    string
	size    uint64
	// parent and from say what the image was a clone of then.
	parent *image
	from   *snapshot
}

// SnapshotImage implements rbd.Clones.
func (p *pool) SnapshotImage(ctx context.Context, id, snapshot string) error {
	_, err := callID(ctx, p, CallSnapshotImage, "make a snapshot of", id, func(i *image) (struct{}, error) {
		if err := checkSnapshot(snapshot); err != nil {
			return struct{}{}, err
		}
		if i == nil {
			return struct{}{}, rbd.ErrImageNotFound
		}
		return struct{}{}, i.makeSnapshot(p.state, snapshot)
	})
	return err
}

// HasClone implements rbd.Clones.
func (p *pool) HasClone(ctx context.Context, id, snapshot, clone string) (bool, error) {
	return callID(ctx, p, CallHasClone, "list the clones of", id, func(i *image) (bool, error) {
		if err := checkSnapshot(snapshot); err != nil {
			return false, err
		}
		if i == nil || i.snapshot(snapshot) == nil {
			return false, rbd.ErrImageNotFound
		}
		c := p.state.byID(clone)
		return c != nil && !c.half && c.from == i.snapshot(snapshot), nil
	})
}

// CloneImage implements rbd.Clones.
func (p *pool) CloneImage(ctx context.Context, name string, spec rbd.CloneSpec) error {
	_, err := call(ctx, p, CallCloneImage, "clone", name, func() (struct{}, error) {
		if err := checkName(spec.Source); err != nil {
			return struct{}{}, err
		}
		if err := checkSnapshot(spec.Snapshot); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, p.session.cluster.cloneImage(p.state, name, spec, p.session.caps)
	})
	return err
}

// RemoveSnapshot implements rbd.Clones.
func (p *pool) RemoveSnapshot(ctx context.Context, id, snapshot string) error {
	_, err := callID(ctx, p, CallRemoveSnapshot, "remove a snapshot of", id, func(i *image) (struct{}, error) {
		if err := checkSnapshot(snapshot); err != nil || i == nil {
			return struct{}{}, err
		}
		return struct{}{}, i.removeSnapshot(p.state, snapshot)
	})
	return err
}

// Snapshots implements rbd.Clones.
func (p *pool) Snapshots(ctx context.Context, id string) ([]string, error) {
	return callID(ctx, p, CallSnapshots, "list the snapshots of", id, func(i *image) ([]string, error) {
		if i == nil {
			return nil, rbd.ErrImageNotFound
		}
		names, _ := i.listSnapshots()
		return names, nil
	})
}

// CloneDepth implements rbd.Clones.
func (p *pool) CloneDepth(ctx context.Context, name string) (int, error) {
	return call(ctx, p, CallCloneDepth, "look for the parents of", name, func() (int, error) {
		i, err := p.state.image(name)
		if err != nil {
			return 0, err
		}
		depth := 0
		for parent, from := i.parent, i.from; parent != nil; parent, from = from.parent, from.from {
			depth++
		}
		return depth, nil
	})
}

// FlattenImage implements rbd.Clones.
func (p *pool) FlattenImage(ctx context.Context, name string) error {
	// It holds a name of its own, not the image's.
	_, err := callImage(ctx, p, CallFlattenImage, "flattening "+name, func() (struct{}, error) {
		i, err := p.state.image(name)
		if err != nil || i.parent == nil {
			return struct{}{}, err
		}
		if p.state.full {
			return struct{}{}, rbd.ErrPoolFull
		}
		i.written = i.written || i.from.written
		i.leaveParent()
		return struct{}{}, nil
	})
	if err != nil {
		err = fmt.Errorf("flatten image %q in pool %q: %w", name, p.state.name, err)
	}
	return err
}

// callID makes one call about an image that is named by its ID, which it locks like a name.
// f gets nil if there is no such image.
func callID[T any](ctx context.Context, p *pool, kind Call, attempt, id string, f func(*image) (T, error)) (T, error) {
	value, err := callImage(ctx, p, kind, id, func() (T, error) { return f(p.state.byID(id)) })
	if err != nil {
		err = fmt.Errorf("%s the image with the ID %q in pool %q: %w", attempt, id, p.state.name, err)
	}
	return value, err
}

func checkSnapshot(name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// Clone makes a clone of an image, as another program would.
func (c *Cluster) Clone(pool, source, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	const snapshot = "somebody's"
	p := c.mustPool(pool)
	for _, err := range []error{
		c.mustImage(pool, source).makeSnapshot(p, snapshot),
		c.cloneImage(p, name, rbd.CloneSpec{Source: source, Snapshot: snapshot}, Caps{AllPools: true}),
		c.mustImage(pool, source).removeSnapshot(p, snapshot),
	} {
		if err != nil {
			panic(fmt.Sprintf("rbdtest: the test can't clone image %q in pool %q: %v", source, pool, err))
		}
	}
}

// HalfClone leaves what a client leaves that dies in the middle of CloneImage: an image
// that names its parent, whose only snapshot does not know the clone.
func (c *Cluster) HalfClone(pool, source, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.mustImage(pool, source)
	from := s.snapshots[0]
	c.mustPool(pool).images[name] = &image{
		id: c.newID(), size: from.size, metadata: map[string]string{}, parent: s, from: from, data: from.data, half: true,
	}
}

// Dangling reports whether an image is a clone of a snapshot that is gone, so that no
// client can open the image any more.
func (c *Cluster) Dangling(pool, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.mustImage(pool, name)
	return i.parent != nil && !slices.Contains(i.parent.snapshots, i.from)
}

// Data returns what Fill has written into an image, or into the images that it is a clone
// of.
func (c *Cluster) Data(pool, name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mustImage(pool, name).data
}

// Fill writes data into an image.
func (c *Cluster) Fill(pool, name, data string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.mustImage(pool, name)
	i.data, i.written = data, true
}

// The calls once they have reached the cluster. The caller holds Cluster.mu.

func (p *poolState) byID(id string) *image {
	if t := p.trash[id]; t != nil && !t.empty && !p.deleted {
		return t.image
	}
	for _, i := range p.images {
		if i.id == id && !p.deleted {
			return i
		}
	}
	return nil
}

func (i *image) snapshot(name string) *snapshot {
	at := slices.IndexFunc(i.snapshots, func(s *snapshot) bool { return s.name == name })
	if at < 0 {
		return nil
	}
	return i.snapshots[at]
}

// listSnapshots returns the sorted names of an image's snapshots, and how many more are
// kept for clones.
func (i *image) listSnapshots() (names []string, kept int) {
	for _, s := range i.snapshots {
		if s.name == "" {
			kept++
		} else {
			names = append(names, s.name)
		}
	}
	slices.Sort(names)
	return names, kept
}

func (i *image) makeSnapshot(p *poolState, name string) error {
	switch {
	case i.snapshot(name) != nil:
		return nil
	case p.full:
		return rbd.ErrPoolFull
	}
	i.snapshots = append(i.snapshots, &snapshot{
		name: name, written: i.written, data: i.data, size: i.size, parent: i.parent, from: i.from,
	})
	if i.from != nil {
		i.from.clones++
	}
	return nil
}

func (c *Cluster) cloneImage(p *poolState, name string, spec rbd.CloneSpec, caps Caps) error {
	source, err := p.image(spec.Source)
	if err != nil {
		return err
	}
	from := source.snapshot(spec.Snapshot)
	if from == nil {
		return rbd.ErrImageNotFound
	}
	if err := c.createImage(p, name, rbd.ImageSpec{SizeBytes: from.size, DataPool: spec.DataPool}, caps); err != nil {
		return err
	}
	made := p.images[name]
	made.metadata = maps.Clone(source.metadata)
	made.parent, made.from, made.data = source, from, from.data
	from.clones++
	return nil
}

func (i *image) removeSnapshot(p *poolState, name string) error {
	s := i.snapshot(name)
	switch {
	case s == nil:
		return nil
	case p.full:
		return rbd.ErrPoolFull
	}
	s.name = ""
	i.dropSnapshots()
	return nil
}

// dropSnapshots drops the removed snapshots that no clone depends on.
func (i *image) dropSnapshots() {
	var dropped []*snapshot
	i.snapshots = slices.DeleteFunc(i.snapshots, func(s *snapshot) bool {
		drop := s.name == "" && s.clones == 0
		if drop {
			dropped = append(dropped, s)
		}
		return drop
	})
	for _, s := range dropped {
		if s.from != nil {
			s.from.clones--
			s.parent.dropSnapshots()
		}
	}
}

// leaveParent makes a clone depend on no other image.
func (i *image) leaveParent() {
	if i.parent == nil {
		return
	}
	parent, from := i.parent, i.from
	i.parent, i.from = nil, nil
	if i.half {
		return // the snapshot does not know the clone
	}
	from.clones--
	parent.dropSnapshots()
}
