// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// flattenEvery is how often it is looked for clones that are to be flattened.
const flattenEvery = time.Second

// flattener knows which clones of which pools are to be flattened. The zero
// flattener is ready, and safe for concurrent use.
type flattener struct {
	mu    sync.Mutex // guards items
	items map[imageKey]*flattenItem
}

// flattenItem is a clone to flatten. All but location belongs to flattenLoop.
type flattenItem struct {
	key imageKey
	// location opens the pool; guarded by flattener.mu.
	location volume.Location
	due      time.Time
	backoff  time.Duration
	// absent is since when there is no such image; zero while there is.
	absent time.Time
	// said says that the log has why it is not flattened.
	said bool
}

// add says that a clone is to be flattened. The location is how its pool was
// opened.
func (f *flattener) add(key imageKey, location volume.Location) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.items == nil {
		f.items = map[imageKey]*flattenItem{}
	}
	if known := f.items[key]; known != nil {
		known.location = location
		return
	}
	f.items[key] = &flattenItem{key: key, location: location}
}

func (f *flattener) has(key imageKey) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.items[key] != nil
}

func (f *flattener) forget(key imageKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.items, key)
}

// all returns the clones to flatten, those of longest ago first.
func (f *flattener) all() []*flattenItem {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := make([]*flattenItem, 0, len(f.items))
	for _, item := range f.items {
		list = append(list, item)
	}
	slices.SortFunc(list, func(a, b *flattenItem) int { return a.due.Compare(b.due) })
	return list
}

func (f *flattener) locationOf(item *flattenItem) volume.Location {
	f.mu.Lock()
	defer f.mu.Unlock()
	return item.location
}

// Unflattened returns how many clones are to be flattened.
func (p *Provisioner) Unflattened() int {
	p.flattener.mu.Lock()
	defer p.flattener.mu.Unlock()
	return len(p.flattener.items)
}

// noteFlattening notes that a clone of a source is to be flattened, if it depends on
// too many images or the source has too many clones. The errors wrap errNotStarted.
func (c cloning) noteFlattening(ctx context.Context, source rbd.Image) error {
	depth := 1
	if source.Parent != "" {
		parents, err := c.pool.CloneDepth(ctx, c.source.record.Image)
		if err != nil {
			return errNotStarted{err}
		}
		depth += parents
	}
	if depth > CloneDepthLimit {
		return errNotStarted{fmt.Errorf("%s depends on as many other images as Linux can map it with, by being a clone of a clone and so on: "+
			"it is cloned once it is flattened, which goes on in the background", c.source.what())}
	}
	if depth <= c.config.MaxCloneDepth && len(source.Snapshots)+source.Kept < manySnapshots {
		return nil
	}
	if err := c.flattenings.Write(ctx, c.pool, journal.Flattening{Image: c.image, Volume: c.pvName, At: time.Now()}); err != nil {
		return errNotStarted{err}
	}
	c.flattener.add(imageKey{c.place(), c.image}, c.location)
	return nil
}

// flattenLoop flattens clones until ctx ends. What it is in the middle of then, the
// next leader begins again: what was copied stays.
func (p *Provisioner) flattenLoop(ctx context.Context) {
	ticker := time.NewTicker(flattenEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		// One at a time in each pool.
		busy := map[journal.Place]bool{}
		for _, item := range p.flattener.all() {
			if ctx.Err() != nil || busy[item.key.place] || time.Now().Before(item.due) {
				continue
			}
			done, err := p.flatten(ctx, item)
			switch {
			case done:
				p.flattener.forget(item.key)
			case errors.Is(err, errGoesOn):
				busy[item.key.place] = true
			default:
				item.due = time.Now().Add(delay(&item.backoff))
			}
		}
	}
}

// flatten flattens one clone, and reports whether there is nothing left to do
// about it.
func (p *Provisioner) flatten(ctx context.Context, item *flattenItem) (done bool, err error) {
	logger := klog.FromContext(ctx).WithValues("image", item.key.image, "pool", item.key.place.Pool)
	location := p.flattener.locationOf(item)
	defer func() {
		if err != nil && !errors.Is(err, errGoesOn) && !item.said && ctx.Err() == nil {
			logger.Info("A clone could not be flattened, trying on", "err", access.Explain(err, location))
			item.said = true
		}
	}()
	pool, err := p.config.Access.OpenForVolume(ctx, location)
	if err != nil {
		return false, err
	}
	defer pool.Close()
	pool.Pool = p.fence(pool.Pool)
	if pool.FSID != item.key.place.FSID {
		return false, access.ErrOtherCluster
	}
	image, err := pool.Image(ctx, item.key.image)
	switch {
	case errors.Is(err, rbd.ErrImageNotFound):
		if item.absent.IsZero() {
			item.absent = time.Now()
		}
		// It may still be made.
		if time.Since(item.absent) < absentFor {
			return false, nil
		}
		return p.clearFlattening(ctx, pool, item)
	case err != nil:
		return false, err
	}
	item.absent = time.Time{}
	if image.Parent == "" {
		return p.clearFlattening(ctx, pool, item)
	}
	if !p.inUse(item.key) {
		// Not while it is made, and not what recovery is to remove.
		return false, nil
	}
	switch err := pool.FlattenImage(ctx, item.key.image); {
	case errors.Is(err, rbd.ErrTimeout):
		logger.V(2).Info("The clone is still being flattened")
		return false, errGoesOn
	case errors.Is(err, rbd.ErrImageNotFound):
		return false, nil // as above
	case err != nil:
		return false, err
	}
	logger.Info("Clone flattened")
	p.purger.wake(item.key.place, image.Parent)
	if p.config.Flattened != nil {
		p.config.Flattened()
	}
	return p.clearFlattening(ctx, pool, item)
}

func (p *Provisioner) clearFlattening(ctx context.Context, pool rbd.Pool, item *flattenItem) (bool, error) {
	if err := p.flattenings.Clear(ctx, pool, item.key.image); err != nil {
		return false, err
	}
	return true, nil
}

// inUse reports whether a volume in the cache names an image.
func (p *Provisioner) inUse(key imageKey) bool {
	volumes, err := p.config.VolumeLister.List(labels.Everything())
	if err != nil {
		return false // a cache has no errors
	}
	for _, pv := range volumes {
		if namesImage(pv, key.place, key.image) {
			return true
		}
	}
	return false
}

// loadFlattenings takes up what earlier leaders were to flatten in a place.
func (r *recovery) loadFlattenings(ctx context.Context, pool rbd.Pool, place journal.Place, w whereabout) error {
	images, unreadable, err := r.flattenings.Read(ctx, pool)
	if err != nil {
		return err
	}
	if len(unreadable) > 0 {
		klog.FromContext(ctx).Info("Notes of another version about clones are left alone", "pool", place.Pool,
			"object", r.flattenings.Object, "images", unreadable)
	}
	for _, f := range images {
		r.flattener.add(imageKey{place, f.Image}, w.location)
	}
	return nil
}
