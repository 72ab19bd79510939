// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"fmt"
	"maps"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Images returns the sorted names of a pool's images, without those that have only remains.
func (c *Cluster) Images(pool string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.mustPool(pool).images))
}

// Image returns what the call of that name would, but needs no credentials and meets no
// fault.
func (c *Cluster) Image(pool, name string) (rbd.Image, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.mustPool(pool).images[name]
	if i == nil {
		return rbd.Image{}, false
	}
	return i.describe(), true
}

// Remains returns the sorted names of the images of which a pool has remains.
func (c *Cluster) Remains(pool string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.mustPool(pool).remains))
}

// AddRemains leaves remains of an image that does not exist.
func (c *Cluster) AddRemains(pool, name string, remains Remains) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.mustPool(pool)
	if remains == RemainsUnlisted {
		p.images[name] = &image{id: c.newID(), size: 1 << 20, metadata: map[string]string{}}
		return
	}
	p.remains[name] = remains
}

// Watch makes a client watch an image, as if it had the image mapped, until stop is called.
func (c *Cluster) Watch(pool, name, address string) (stop func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.mustImage(pool, name)
	i.watchers = append(i.watchers, address)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if at := slices.Index(i.watchers, address); at >= 0 {
			i.watchers = slices.Delete(i.watchers, at, at+1)
		}
	}
}

// AddSnapshot makes a snapshot of an image.
func (c *Cluster) AddSnapshot(pool, image, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.mustImage(pool, image)
	i.snapshots = append(i.snapshots, &snapshot{name: name, size: i.size})
}

// RemoveSnapshot removes a snapshot of an image.
func (c *Cluster) RemoveSnapshot(pool, image, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.mustImage(pool, image)
	i.snapshots = slices.DeleteFunc(i.snapshots, func(s *snapshot) bool { return s.name == name })
}

// Hold puts an image into a group, for example, until the returned function is called.
// command is what would end that.
func (c *Cluster) Hold(pool, name, command string) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := c.mustImage(pool, name)
	i.held = append(i.held, command)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		i.held = slices.DeleteFunc(i.held, func(h string) bool { return h == command })
	}
}

// ClearMetadata removes all entries of an image's metadata.
func (c *Cluster) ClearMetadata(pool, image string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.mustImage(pool, image).metadata)
}

// Write writes into an image, as mkfs would.
func (c *Cluster) Write(pool, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mustImage(pool, name).written = true
}

// mustImage returns an image, and panics if there is none. The caller holds c.mu.
func (c *Cluster) mustImage(pool, name string) *image {
	i := c.mustPool(pool).images[name]
	if i == nil {
		panic(fmt.Sprintf("rbdtest: the test has no image %q in pool %q", name, pool))
	}
	return i
}

func (i *image) describe() rbd.Image {
	info := rbd.Image{
		ID:        i.id,
		SizeBytes: i.size,
		Features:  []string{rbd.FeatureLayering},
		DataPool:  i.dataPool,
		Metadata:  maps.Clone(i.metadata),
		Watchers:  slices.Clone(i.watchers),
		Held:      slices.Clone(i.held),
	}
	info.Snapshots, info.Kept = i.listSnapshots()
	clones := false
	for _, s := range i.snapshots {
		clones = clones || s.clones > 0
	}
	if i.parent != nil {
		info.Parent = i.parent.id
	}
	if clones || i.parent != nil {
		info.Features = append(info.Features, rbd.FeatureOperations)
	}
	if i.dataPool != "" {
		info.Features = append(info.Features, rbd.FeatureDataPool)
	}
	slices.Sort(info.Features)
	slices.Sort(info.Watchers)
	return info
}

// The calls of rbd.Pool once they have reached the cluster. The caller holds c.mu.

func (c *Cluster) createImage(p *poolState, name string, spec rbd.ImageSpec, caps Caps) error {
	_, remains := p.remains[name]
	if p.deleted {
		return rbd.ErrPoolNotFound
	}
	if spec.DataPool == p.name {
		spec.DataPool = ""
	}
	if spec.DataPool != "" {
		data := c.pools[spec.DataPool]
		switch {
		case data == nil:
			return fmt.Errorf("data pool %q: %w", spec.DataPool, rbd.ErrPoolNotFound)
		case !caps.allow(spec.DataPool):
			return fmt.Errorf("data pool %q: %w", spec.DataPool, rbd.ErrPermissionDenied)
		case data.noData:
			return rbd.ErrNotSupported
		}
	}
	switch {
	case p.noImages:
		return rbd.ErrNotSupported
	case p.images[name] != nil || remains:
		return rbd.ErrImageExists
	case p.full:
		return rbd.ErrPoolFull
	}
	p.images[name] = &image{id: c.newID(), size: spec.SizeBytes, dataPool: spec.DataPool, metadata: map[string]string{}}
	return nil
}

func (p *poolState) image(name string) (*image, error) {
	i := p.images[name]
	if p.deleted || i == nil {
		return nil, rbd.ErrImageNotFound
	}
	return i, nil
}

func (p *poolState) setMetadata(name string, entries map[string]string) error {
	i, err := p.image(name)
	switch {
	case err != nil:
		return err
	case p.full:
		return rbd.ErrPoolFull
	}
	maps.Copy(i.metadata, entries)
	return nil
}

func (p *poolState) growImage(name string, size uint64) error {
	i, err := p.image(name)
	switch {
	case err != nil:
		return err
	case i.size >= size:
		return nil
	case p.full:
		return rbd.ErrPoolFull
	}
	i.size = size
	return nil
}

// removeImage moves an image to the trash and then removes it from there, as librbd does.
// If interrupted is not nil, it stops in between and returns that.
func (p *poolState) removeImage(name string, caps Caps, interrupted error) error {
	if _, found := p.remains[name]; found {
		delete(p.remains, name)
		return nil
	}
	i := p.images[name]
	switch {
	case p.deleted:
		return rbd.ErrImageNotFound
	case i == nil:
		t := p.removing(name)
		if t == nil {
			return rbd.ErrImageNotFound
		}
		i = t.image
	case len(i.snapshots) > 0:
		return rbd.ErrImageHasSnapshots
	case len(i.watchers) > 0:
		return rbd.ErrImageInUse
	case len(i.held) > 0:
		return rbd.ErrImageHeld
	default:
		p.moveToTrash(name).removing = true
	}
	if interrupted != nil {
		return interrupted
	}
	return p.removeTrashed(i.id, caps)
}
