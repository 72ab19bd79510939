// SPDX-License-Identifier: Apache-2.0

// Package flatten copies into clones what they share, so that they depend on no other
// image: those that depend on more images than they may.
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
	// width is in how many pools clones are looked after at a time. More may be
	// flattened: librbd goes on with those whose call has reached its deadline.
	width = 4
	// pause is when such a one is looked at again.
	pause = time.Second
)

// ErrFlattening says that a clone gets its volume later. Not before: while librbd
// flattens an image it watches it, so that kubelet would not map it; and what is
// cloned from it meanwhile is lost.
var ErrFlattening = errors.New("its clone is being flattened, since it depends on more images than -max-clone-depth allows " +
	"or its source has many clones: it gets its volume by itself once all data is copied")

// notFlattened is ErrFlattening after a failure, in the words of what went wrong.
type notFlattened struct{ error }

func (e notFlattened) Unwrap() []error { return []error{ErrFlattening, e.error} }

// Config has what New needs. Access is required.
type Config struct {
	// Access opens pools. It knows of the lease, if there is one.
	Access *access.Access
	// Cluster is the UID of our Kubernetes cluster, empty if that is not known. Clones
	// that belong to another one are left alone.
	Cluster string
	// Flattened is told of each clone that was flattened, by its pool and the ID of
	// the image that it was a clone of. It is called by several goroutines; nil for
	// nobody.
	Flattened func(pool volume.PoolID, parent string)
}

// Queue has the clones that are to be flattened. What it forgets with its process, the
// next attempt for the claim tells it again. It is safe for concurrent use.
type Queue struct {
	config Config
	// work has the pools: in each, one clone at a time is flattened.
	work *work.Queue[volume.PoolID]
	// retries says when a clone that could not be flattened is tried again.
	retries workqueue.TypedRateLimiter[volume.ImageID]

	mu    sync.Mutex                // guards what follows, and all of the items
	pools map[volume.PoolID][]*item // in the order of the requests
}

// item is a clone to flatten.
type item struct {
	image    volume.ImageID
	location volume.Location
	// parent is the ID of the image that it is a clone of.
	parent string
	// begun says that librbd may still be flattening it.
	begun bool
	// err is why the last attempt failed, due when the next one is made.
	err error
	due time.Time
}

// New returns an empty queue, which is to be Run; or an error that names what c lacks.
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

// Request says that a clone is to be flattened, if it was not said already, and returns
// why that is not done yet: ErrFlattening; or, after a failure, an error that wraps it and
// has the words of that. The location opens its pool, parent is the ID of the image that
// it is a clone of.
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

// Count returns how many clones are to be flattened.
func (q *Queue) Count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for _, items := range q.pools {
		n += len(items)
	}
	return n
}

// Run flattens clones until ctx ends and the calls that are under way have returned. What
// it is in the middle of then, the next leader begins again: what was copied stays. It is
// to be called once.
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
		err = nil // so is its claim
	case errors.Is(err, rbd.ErrTimeout):
		// It goes on, as a rule, and so no other one of the pool begins; the next
		// attempt waits for it.
		logger.V(2).Info("The clone is still being flattened")
	}
	return q.ended(one.image, err)
}

// take returns the clone whose turn it is, or when the pool comes again: never if that is
// nil, too.
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
	taken := *one // since Request changes it
	return &taken, nil
}

// flatten flattens a clone.
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

// ended says how an attempt ended: with nil, the clone is forgotten. It has the pool come
// again.
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
