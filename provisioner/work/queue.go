// SPDX-License-Identifier: Apache-2.0

// Package work runs what is done in the background: on client-go's work queues, and
// with one policy for what failed.
package work

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"
)

// RetryStart and RetryCap bound the time after which what failed is tried again; it
// doubles from one to the other. Claims and volumes, which people wait for, come again
// after a minute at most: see cmd.
const (
	RetryStart = time.Second
	RetryCap   = 5 * time.Minute
)

// NewRateLimiter returns the policy as client-go has it.
func NewRateLimiter[T comparable]() workqueue.TypedRateLimiter[T] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[T](RetryStart, RetryCap)
}

// Queue has what is to be done. An item that is added while it waits, or is worked on,
// is worked on once more, not twice. It is safe for concurrent use, and to be run once.
type Queue[T comparable] struct {
	typed workqueue.TypedRateLimitingInterface[T]
}

// NewQueue returns an empty queue.
func NewQueue[T comparable]() *Queue[T] {
	return &Queue[T]{workqueue.NewTypedRateLimitingQueue(NewRateLimiter[T]())}
}

// Add has an item worked on at once.
func (q *Queue[T]) Add(item T) { q.typed.Add(item) }

// AddAfter has an item worked on after a time, or when it is added otherwise.
func (q *Queue[T]) AddAfter(item T, after time.Duration) { q.typed.AddAfter(item, after) }

// later is the error of an item that is to come again, and has not failed.
type later struct{ after time.Duration }

func (l later) Error() string { return "it comes again after " + l.after.String() }

// Later returns an error that has an item come again after a time. That is no failure:
// the next one is retried as if it were the first.
func Later(after time.Duration) error { return later{after} }

// IsLater reports whether an error is that of Later, or wraps it.
func IsLater(err error) bool {
	_, ok := errors.AsType[later](err)
	return ok
}

// Run has so many workers do what is to be done with each item, until ctx ends and they
// have returned. What is left in the queue then, is lost. An error of do has the item
// come again: after a while that doubles with each failure, or when Later says so.
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
		return true // a queue that is shut down still gives out what it has
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
