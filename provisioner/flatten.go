// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// flattenEvery is how often it is looked for clones that are to be flattened.
const flattenEvery = time.Second

// errFlattening says that a clone gets its volume later. Not before: while librbd
// flattens an image it watches it, so that kubelet would not map it; and what is
// cloned from it meanwhile is lost.
var errFlattening = errors.New("its clone is being flattened, since it depends on more images than -max-clone-depth allows " +
	"or its source has many clones: it gets its volume by itself once all data is copied")

// notFlattened is errFlattening after a failure, with the words of what went wrong.
type notFlattened struct{ error }

func (e notFlattened) Unwrap() []error { return []error{errFlattening, e.error} }

// flattener knows which clones are to be flattened. What it forgets with its process,
// the next attempt for the claim tells it again. The zero flattener is ready, and safe
// for concurrent use.
type flattener struct {
	mu    sync.Mutex // guards all that follows, and all of the items
	items map[imageKey]*flattenItem
	// added counts those that ever were, to take them in their order.
	added int
}

// flattenItem is a clone to flatten.
type flattenItem struct {
	key      imageKey
	location volume.Location
	// parent is the ID of the image that it is a clone of.
	parent  string
	number  int
	running bool
	// err is why the last attempt failed.
	err     error
	due     time.Time
	backoff time.Duration
}

// request says that a clone is to be flattened, and returns why it is not yet: an error
// that wraps errFlattening, after a failure in the words of that. The location opens its
// pool.
func (f *flattener) request(key imageKey, location volume.Location, parent string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.items == nil {
		f.items = map[imageKey]*flattenItem{}
	}
	item := f.items[key]
	if item == nil {
		f.added++
		item = &flattenItem{key: key, number: f.added}
		f.items[key] = item
	}
	item.location, item.parent = location, parent
	if item.err != nil {
		return notFlattened{item.err}
	}
	return errFlattening
}

// begin returns clones whose turn it is, one in each pool where none is being
// flattened. The caller flattens them, and calls end for each.
func (f *flattener) begin(now time.Time) []flattenItem {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := map[journal.Place]*flattenItem{}
	for key, item := range f.items {
		first := next[key.place]
		switch {
		case first != nil && first.running:
		case item.running, !now.Before(item.due) && (first == nil || item.number < first.number):
			next[key.place] = item
		}
	}
	var begun []flattenItem
	for _, item := range next {
		if !item.running {
			item.running = true
			begun = append(begun, *item)
		}
	}
	return begun
}

// end says how the flattening of a clone ended: with nil it is forgotten.
func (f *flattener) end(key imageKey, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	item := f.items[key]
	if err == nil {
		delete(f.items, key)
		return
	}
	item.running, item.err = false, err
	item.due = time.Now().Add(delay(&item.backoff))
}

// Unflattened returns how many clones are to be flattened.
func (p *Provisioner) Unflattened() int {
	p.flattener.mu.Lock()
	defer p.flattener.mu.Unlock()
	return len(p.flattener.items)
}

// flattenLoop flattens clones until ctx ends. What it is in the middle of then, the
// next leader begins again: what was copied stays.
func (p *Provisioner) flattenLoop(ctx context.Context) {
	ticker := time.NewTicker(flattenEvery)
	defer ticker.Stop()
	var work sync.WaitGroup
	defer work.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, item := range p.flattener.begin(time.Now()) {
			work.Go(func() { p.flattener.end(item.key, p.flatten(ctx, item)) })
		}
	}
}

// flatten flattens a clone. That it is gone is no error: so is its claim.
func (p *Provisioner) flatten(ctx context.Context, item flattenItem) error {
	logger := klog.FromContext(ctx).WithValues("image", item.key.image, "pool", item.key.place.Pool)
	logger.Info("Flattening a clone")
	for {
		err := p.flattenOnce(ctx, item)
		switch {
		case err == nil:
			logger.Info("Clone flattened")
			p.purger.wake(item.key.place, item.parent)
			if p.config.Flattened != nil {
				p.config.Flattened()
			}
			return nil
		case errors.Is(err, rbd.ErrImageNotFound):
			return nil
		case !errors.Is(err, rbd.ErrTimeout) || ctx.Err() != nil:
			return err
		}
		// It goes on, as a rule, and so no other one of the pool begins; the next
		// attempt waits for it.
		logger.V(2).Info("The clone is still being flattened")
		if sleep(ctx, flattenEvery); ctx.Err() != nil {
			return errFlattening
		}
	}
}

func (p *Provisioner) flattenOnce(ctx context.Context, item flattenItem) error {
	pool, err := p.config.Access.OpenForVolume(ctx, item.location)
	if err != nil {
		return err
	}
	defer pool.Close()
	if pool.FSID != item.key.place.FSID {
		return access.ErrOtherCluster
	}
	image, err := pool.Image(ctx, item.key.image)
	if err != nil {
		return err
	}
	if other := volume.ForeignCluster(image.Metadata, p.config.ClusterUID); other != "" {
		return fmt.Errorf("clone %q belongs to another Kubernetes cluster by now (%s): it is left alone", item.key.image, other)
	}
	return pool.FlattenImage(ctx, item.key.image)
}
