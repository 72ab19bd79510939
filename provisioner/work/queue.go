// SPDX-License-Identifier: Apache-2.0

// Package work runs background jobs on client-go's work queues, with one retry policy.
package work

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
)

// RetryStart and RetryCap bound the delay before a retry, which doubles from one to the
// other. Claims and volumes, which users wait for, come again sooner: see cmd.
const (
	RetryStart = time.Second
	RetryCap   = 5 * time.Minute
)

// NextDelay returns the delay before the next retry; last is the one before, 0 for none.
func NextDelay(last time.Duration) time.Duration {
	return min(max(2*last, RetryStart), RetryCap)
}

// Queue holds work to do. An item that is added while it waits, or is worked on, is
// worked on once more, not twice. A Queue is safe for concurrent use. Run it once.
type Queue[T comparable] struct {
	typed workqueue.TypedRateLimitingInterface[T]
}

// NewQueue returns an empty queue.
func NewQueue[T comparable]() *Queue[T] {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[T](RetryStart, RetryCap)
	return &Queue[T]{workqueue.NewTypedRateLimitingQueue(limiter)}
}

// Add queues an item at once.
func (q *Queue[T]) Add(item T) { q.typed.Add(item) }

// AddAfter queues an item after a time; an Add meanwhile brings it forward.
func (q *Queue[T]) AddAfter(item T, after time.Duration) { q.typed.AddAfter(item, after) }

// later is the error of an item that has not failed, but is to come again.
type later struct{ after time.Duration }

func (l later) Error() string { return "it comes again after " + l.after.String() }

// Later returns an error that makes an item come again after a time. It does not count
// as a failure: the next one is retried as if it were the first.
func Later(after time.Duration) error { return later{after} }

// IsLater reports whether err comes from Later, or wraps an error that does.
func IsLater(err error) bool {
	_, ok := errors.AsType[later](err)
	return ok
}

// Run has a number of workers call do with each item, until ctx ends and they have
// returned. What is left in the queue then is lost. An error of do makes the item come
// again: after a delay that doubles with each failure, or when Later says so.
func (q *Queue[T]) Run(ctx context.Context, workers int, do func(context.Context, T) error) {
	stop := context.AfterFunc(ctx, q.typed.ShutDown)
	defer stop()
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for q.one(ctx, do) {
			}
		})
	}
	running.Wait()
}

// one works on one item, and reports whether there may be others.
func (q *Queue[T]) one(ctx context.Context, do func(context.Context, T) error) bool {
	item, shutDown := q.typed.Get()
	if shutDown {
		return false
	}
	defer q.typed.Done(item)
	if ctx.Err() != nil {
		return true // after shutdown, a queue still gives out what it has
	}
	err := do(ctx, item)
	if again, ok := errors.AsType[later](err); ok {
		q.typed.Forget(item)
		q.typed.AddAfter(item, again.after)
	} else if err != nil {
		q.typed.AddRateLimited(item)
	} else {
		q.typed.Forget(item)
	}
	return true
}
