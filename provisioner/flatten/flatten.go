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

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	// width is in how many pools calls run at a time. More clones may be flattening: librbd
	// goes on after a call's deadline.
	width = 4
	// pause is when a pool comes again in which a clone is being flattened, or none is due.
	pause = time.Second
)

// ErrFlattening says that a clone gets its volume later. It can't before: librbd
// watches an image while flattening it, so nodes would not map it; and anything
// cloned from it meanwhile is lost.
var ErrFlattening = errors.New("its clone is being flattened, since it depends on more images than -max-clone-depth allows " +
	"or its source has many clones: the claim gets its volume once all data is copied")

// notFlattened is ErrFlattening in the words of a failure.
type notFlattened struct{ error }

func (e notFlattened) Unwrap() []error { return []error{ErrFlattening, e.error} }

// errGoesOn says that librbd went on flattening after the call's deadline.
var errGoesOn = errors.New("the clone is still being flattened")

// Config has what New needs. Access and Flattened are required.
type Config struct {
	Access *access.Access
	// Cluster is the UID of our Kubernetes cluster, empty if unknown. Clones that
	// belong to another cluster are left alone.
	Cluster string
	// Flattened is called for each flattened clone, with its pool and the ID of the
	// image that it was a clone of. Several goroutines call it.
	Flattened func(pool volume.PoolID, parent string)
}

// Queue holds the clones to flatten, in memory only: after a restart, the next attempt
// for a claim requests its clone again. It is safe for concurrent use.
type Queue struct {
	config Config
	work   *work.Queue[volume.PoolID] // in each pool, one clone at a time is flattened

	mu    sync.Mutex // guards items and what is in them
	items []*item    // in the order of the requests
}

// item is a clone to flatten. Request sets the first fields, the worker in its pool the rest.
type item struct {
	image    volume.ImageID
	location volume.Location
	parent   string
	// begun means that librbd may still be flattening it.
	begun bool
	// err is the last failure; the next attempt is due a delay later.
	err   error
	delay time.Duration
	due   time.Time
}

// New returns an empty queue to Run, or an error that names the missing fields.
func New(c Config) (*Queue, error) {
	if c.Access == nil || c.Flattened == nil {
		return nil, errors.New("flatten: Access and Flattened are required")
	}
	return &Queue{config: c, work: work.NewQueue[volume.PoolID]()}, nil
}

// Request queues a clone to flatten, unless it is queued already, and returns why it is
// not flattened yet: ErrFlattening, or after a failure an error that wraps both. The
// location opens its pool, parent is the ID of the image that it is a clone of.
func (q *Queue) Request(image volume.ImageID, location volume.Location, parent string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	at := slices.IndexFunc(q.items, func(one *item) bool { return one.image == image })
	if at < 0 {
		at = len(q.items)
		q.items = append(q.items, &item{image: image})
		q.work.Add(image.PoolID)
	}
	one := q.items[at]
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
	return len(q.items)
}

// Run flattens clones until ctx ends and calls in flight have returned. The next leader
// begins unfinished clones again: copied data stays. Call it once.
func (q *Queue) Run(ctx context.Context) { q.work.Run(ctx, width, q.next) }

// next flattens the clone of a pool whose turn it is, and says when the pool comes again.
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
	again = q.ended(one, err)
	switch {
	case err == nil:
		logger.Info("Clone flattened")
		q.config.Flattened(pool, one.parent)
	case errors.Is(err, errGoesOn):
		logger.V(2).Info("The clone is still being flattened")
	}
	return again
}

// take returns the clone of a pool that is being flattened, or else the first one that is
// due; if there is none, again says when the pool comes again: nil for never.
func (q *Queue) take(pool volume.PoolID) (one *item, again error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, next := range q.items {
		if next.image.PoolID != pool {
			continue
		}
		again = work.Later(pause)
		if next.begun || one == nil && !next.due.After(time.Now()) {
			one = next
		}
	}
	return one, again
}

func (q *Queue) flatten(ctx context.Context, one *item) error {
	q.mu.Lock()
	location := one.location
	q.mu.Unlock()
	pool, err := q.config.Access.OpenForVolume(ctx, location)
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
	err = pool.FlattenImage(ctx, one.image.Name)
	if errors.Is(err, rbd.ErrTimeout) {
		return errGoesOn
	}
	return err
}

// ended records how an attempt for a clone ended, and says when the pool comes again.
func (q *Queue) ended(one *item, err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	// A clone that nobody could ask about has not begun by that: OSDs may be silent towards
	// its user alone, and others get their turn.
	one.begun = errors.Is(err, errGoesOn) || one.begun && errors.Is(err, rbd.ErrTimeout)
	switch {
	case one.begun:
		// As a rule librbd goes on, so no other clone of the pool begins; the next
		// attempt waits for this one.
		return work.Later(pause)
	case err == nil, errors.Is(err, rbd.ErrImageNotFound): // its claim is gone, too
		q.items = slices.DeleteFunc(q.items, func(other *item) bool { return other == one })
	default:
		one.err, one.delay = err, work.NextDelay(one.delay)
		one.due = time.Now().Add(one.delay)
	}
	return work.Later(0)
}
