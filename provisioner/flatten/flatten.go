// SPDX-License-Identifier: Apache-2.0

// Package flatten copies into clones the data that they share, so that they depend on
// no other image: it serves clones that depend on more images than they may.
package flatten

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	// width is the number of pools whose clones are handled at a time. More clones may
	// be flattening: librbd goes on with those whose call has reached its deadline.
	width = 4
	// pause is how long until such a clone is looked at again.
	pause = time.Second
)

// ErrFlattening says that a clone gets its volume later. It can't before: librbd
// watches an image while flattening it, so kubelet would not map it; and anything
// cloned from it meanwhile is lost.
var ErrFlattening = errors.New("its clone is being flattened, since it depends on more images than -max-clone-depth allows " +
	"or its source has many clones: it gets its volume by itself once all data is copied")

// notFlattened is ErrFlattening after a failure, in the words of that failure.
type notFlattened struct{ error }

func (e notFlattened) Unwrap() []error { return []error{ErrFlattening, e.error} }

// Config has what New needs. Access is required.
type Config struct {
	// Access opens pools. It knows the lease, if there is one.
	Access *access.Access
	// Cluster is the UID of our Kubernetes cluster, empty if unknown. Clones that
	// belong to another cluster are left alone.
	Cluster string
	// Flattened is called for each flattened clone, with its pool and the ID of the
	// image that it was a clone of. Several goroutines call it; it may be nil.
	Flattened func(pool volume.PoolID, parent string)
}

// Queue holds the clones to flatten, in memory only: after a restart, the next attempt
// for a claim requests its clone again. It is safe for concurrent use.
type Queue struct {
	config Config
	// work holds the pools: in each, one clone at a time is flattened.
	work *work.Queue[volume.PoolID]
	// retries says when to retry a clone that could not be flattened.
	retries workqueue.TypedRateLimiter[volume.ImageID]

	mu    sync.Mutex                // guards the fields below, and all items
	pools map[volume.PoolID][]*item // in the order of the requests
}

// item is a clone to flatten.
type item struct {
	image    volume.ImageID
	location volume.Location
	// parent is the ID of the image that it is a clone of.
	parent string
	// begun means that librbd may still be flattening it.
	begun bool
	// err is the failure of the last attempt, due the time of the next one.
	err error
	due time.Time
}

// New returns an empty queue to Run, or an error that names the missing fields.
func New(c Config) (*Queue, error) {
	if c.Access == nil {
		return nil, errors.New("flatten: Access is required")
	}
	if c.Flattened == nil {
		c.Flattened = func(volume.PoolID, string) {}
	}
	return &Queue{config: c, work: work.NewQueue[volume.PoolID](), retries: work.NewRateLimiter[volume.ImageID](),
		pools: map[volume.PoolID][]*item{}}, nil
}

// Request queues a clone to flatten, unless it is queued already, and returns why that
// is not done yet: ErrFlattening; or, after a failure, an error that wraps it and has
// the words of the failure. The location opens its pool, parent is the ID of the image
// that it is a clone of.
func (q *Queue) Request(image volume.ImageID, location volume.Location, parent string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.pools[image.PoolID]
	at := slices.IndexFunc(items, func(one *item) bool { return one.image == image })
	if at < 0 {
		at = len(items)
		items = append(items, &item{image: image})
		q.pools[image.PoolID] = items
		q.work.Add(image.PoolID)
	}
	one := items[at]
	one.location, one.parent = location, parent
	if one.err != nil {
		return notFlattened{one.err}
	}
	return ErrFlattening
}

// Count returns how many clones are still to be flattened.
func (q *Queue) Count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, items := range q.pools {
		n += len(items)
	}
	return n
}

// Run flattens clones until ctx ends and calls in flight have returned. The next leader
// begins unfinished clones again: copied data stays. Call it once.
func (q *Queue) Run(ctx context.Context) { q.work.Run(ctx, width, q.next) }

// next flattens the clone of a pool whose turn it is.
func (q *Queue) next(ctx context.Context, pool volume.PoolID) error {
	one, again := q.take(pool)
	if one == nil {
		return again
	}
	logger := klog.FromContext(ctx).WithValues("image", one.image.Name, "pool", pool.Pool)
	if !one.begun && one.err == nil {
		logger.Info("Flattening a clone")
	}
	err := q.flatten(ctx, one)
	switch {
	case err == nil:
		logger.Info("Clone flattened")
		q.config.Flattened(pool, one.parent)
	case errors.Is(err, rbd.ErrImageNotFound):
		err = nil // its claim is gone, too
	case errors.Is(err, rbd.ErrTimeout):
		// As a rule librbd goes on, so no other clone of the pool begins; the next
		// attempt waits for this one.
		logger.V(2).Info("The clone is still being flattened")
	}
	return q.ended(one.image, err)
}

// take returns the clone whose turn it is; if there is none, again says when the pool
// comes again: never if it is nil, too.
func (q *Queue) take(pool volume.PoolID) (one *item, again error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, next := range q.pools[pool] {
		if one == nil || next.begun || !one.begun && one.due.After(time.Now()) && next.due.Before(one.due) {
			one = next
		}
	}
	if one == nil {
		return nil, nil
	}
	if wait := time.Until(one.due); wait > 0 {
		return nil, work.Later(wait)
	}
	taken := *one // since Request changes the item
	return &taken, nil
}

func (q *Queue) flatten(ctx context.Context, one *item) error {
	pool, err := q.config.Access.OpenForVolume(ctx, one.location)
	if err != nil {
		return err
	}
	defer pool.Close()
	if pool.ID != one.image.PoolID {
		return access.ErrOtherCluster
	}
	image, err := pool.Image(ctx, one.image.Name)
	if err != nil {
		return err
	}
	if other := volume.ForeignCluster(image.Metadata, q.config.Cluster); other != "" {
		return fmt.Errorf("clone %q belongs to another Kubernetes cluster by now (%s): it is left alone", one.image.Name, other)
	}
	return pool.FlattenImage(ctx, one.image.Name)
}

// ended records how an attempt ended, and forgets the clone if err is nil. Its result
// has the pool come again.
func (q *Queue) ended(image volume.ImageID, err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	items := q.pools[image.PoolID]
	at := slices.IndexFunc(items, func(one *item) bool { return one.image == image })
	one := items[at]
	switch one.begun = errors.Is(err, rbd.ErrTimeout); {
	case one.begun:
		one.due = time.Now().Add(pause)
	case err != nil:
		one.err, one.due = err, time.Now().Add(q.retries.When(image))
	default:
		q.retries.Forget(image)
		q.pools[image.PoolID] = slices.Delete(items, at, at+1)
	}
	return work.Later(0)
}
