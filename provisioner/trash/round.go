// SPDX-License-Identifier: Apache-2.0

package trash

import (
	"context"
	"errors"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

// round removes the due images of a pool, and says when the pool comes again.
func (q *Queue) round(ctx context.Context, id volume.PoolID) error {
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("pool", id.Pool))
	in, location, due, again := q.due(id)
	if len(due) == 0 {
		return again
	}
	err := q.removeAll(ctx, in, location, due)
	if err != nil && !in.failing && ctx.Err() == nil {
		klog.FromContext(ctx).Info("Images of deleted volumes could not be removed from the trash, will retry", "err", err)
	}
	if in.failing = err != nil; in.failing {
		return err
	}
	return work.Later(pause)
}

// due returns a pool, its location and the images whose turn it is, the oldest first.
// If there are none, again says when to look again: never if it is nil.
func (q *Queue) due(id volume.PoolID) (in *pool, location volume.Location, due []*item, again error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	in = q.pool(id)
	var wait time.Duration
	for _, one := range in.items {
		if q.isTurn(one) {
			due = append(due, one)
		}
		if until := max(time.Until(one.due), pause); again == nil || until < wait {
			wait, again = until, work.Later(until)
		}
	}
	slices.SortFunc(due, func(a, b *item) int { return a.due.Compare(b.due) })
	return in, in.location, due, again
}

// isTurn reports whether an image is due and need not give way to claims and volumes,
// which users wait for. The caller holds q.mu.
func (q *Queue) isTurn(one *item) bool {
	age := time.Since(one.due)
	return age >= patience || age >= 0 && q.config.Quiet(quiet)
}

// removeAll removes images of a pool. An error means that the others would fail, too.
func (q *Queue) removeAll(ctx context.Context, in *pool, location volume.Location, due []*item) error {
	open, err := q.config.Access.OpenForVolume(ctx, location)
	if err != nil {
		return err
	}
	defer open.Close()
	if open.ID != in.id {
		return access.ErrOtherCluster
	}
	r := removing{q, in, open}
	for _, one := range due {
		if ctx.Err() != nil {
			break
		}
		if !q.take(one) {
			continue
		}
		if err := r.settle(ctx, one); errors.Is(err, errGoesOn) {
			break
		} else if err != nil {
			return access.Explain(err, location)
		}
	}
	return nil
}

// take reports whether it is still an image's turn. A Wake from here on makes a round
// look at it again.
func (q *Queue) take(one *item) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.isTurn(one) {
		return false
	}
	if one.woken && !one.ours.IsZero() {
		// The manager failed for the same reason that kept this process from removing
		// it.
		one.ours = time.Now()
	}
	one.woken = false
	return true
}

// postpone sets when a round looks at an image next. One that was woken since take
// comes at once: its last clone may have gone meanwhile.
func (q *Queue) postpone(one *item, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !one.woken {
		one.due = time.Now().Add(wait)
	}
}

func (q *Queue) isCurrent(in *pool, one *item) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return in.items[one.removal.ID] == one
}

func (q *Queue) forget(in *pool, one *item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(in.items, one.removal.ID)
	q.retries.Forget(one)
}
