// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"context"
	"fmt"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// RunManager lets the cluster's manager remove the images that were handed over to it, as
// far as it can. A real manager works by itself, and retries what failed.
func (c *Cluster) RunManager() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.pools {
		c.runManager(p, func(*trashed) bool { return true })
	}
}

// RunManagerFor is RunManager for the images that had a name.
func (c *Cluster) RunManagerFor(pool, image string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.runManager(c.mustPool(pool), func(t *trashed) bool { return t.name == image })
}

func (c *Cluster) runManager(p *poolState, which func(*trashed) bool) {
	for id, t := range p.trash {
		if t.handedOver && which(t) {
			t.failed = p.removeTrashed(id, Caps{AllPools: true}) != nil
		}
	}
}

// HandedOver returns how many images of a pool the manager is to remove.
func (c *Cluster) HandedOver(pool string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, t := range c.mustPool(pool).trash {
		if t.handedOver {
			n++
		}
	}
	return n
}

// HandOverTrashed implements rbd.Trash.
func (p *pool) HandOverTrashed(ctx context.Context, id string) error {
	err := func() error {
		if err := checkName(id); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
		_, err := invoke(ctx, p, CallHandOverTrashed, id, func() {}, func() (struct{}, error) {
			return struct{}{}, p.state.handOverTrashed(id, p.session.caps)
		})
		return err
	}()
	if err != nil {
		err = fmt.Errorf("hand over image %q in the trash of pool %q: %w", id, p.state.name, err)
	}
	return err
}

// handOverTrashed is the call once it has reached the manager. The caller holds Cluster.mu.
func (p *poolState) handOverTrashed(id string, caps Caps) error {
	t := p.trash[id]
	switch {
	case !caps.Manager:
		return rbd.ErrPermissionDenied
	case t == nil:
		return rbd.ErrImageNotFound
	case t.failed:
		t.handedOver, t.failed = false, false
		return rbd.ErrManagerFailed
	}
	t.handedOver = true
	return nil
}
