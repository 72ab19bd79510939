// SPDX-License-Identifier: Apache-2.0

// Package trash removes the images of deleted volumes from the trash, once their
// retention has passed. It removes only images that a note of the journal names.
package trash

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	// width is in how many pools images are removed at a time, one by one in each.
	width = 4
	// patience is how long a removal gives way to claims and volumes. Users wait only
	// for the room that it makes.
	patience = 10 * time.Second
	// quiet is how long claims and volumes must have been idle before a removal begins.
	// Ceph's manager takes a hundred times the CPU for an image that its volume's
	// deletion does, on cores that may serve claims, too.
	quiet = time.Second
	// slice is how many objects of a large image are removed at a time: librbd's calls take
	// 1 s for that, written or not, but weeks for 100 PiB. Ceph's manager, too, would begin
	// with no other image before the end.
	slice = image.Large / (4 << 20)
	// pause is the least time between two rounds in a pool, unless a call asks for one.
	pause = time.Second
)

// Config has what New needs. All fields are required.
type Config struct {
	Access  *access.Access
	Journal *journal.Journal
	// Volumes finds volumes that name an image again; Events tells them where it is.
	Volumes index.Volumes
	Events  record.EventRecorder
	// Quiet reports whether no operation on a claim or volume is in flight, or was within d.
	Quiet func(d time.Duration) bool
	// Purged is called for each removed image, with its remover: ByManager or
	// ByProvisioner. Several goroutines call it.
	Purged func(by string)
}

// Queue holds the images to remove. It is safe for concurrent use.
type Queue struct {
	config Config
	// work holds pools, not images: a round removes all that are due on one connection.
	work    *work.Queue[volume.PoolID]
	visited sync.Map // the pools whose notes were taken up

	mu    sync.Mutex // guards what follows, and in pools location, items and item.woken
	pools map[volume.PoolID]*pool
	// managers are those of the pools' clusters, by FSID.
	managers map[string]*manager
}

// pool holds images to remove, by their IDs. The worker in it owns all fields, those of the
// images too, that Queue.mu does not guard.
type pool struct {
	id       volume.PoolID
	location volume.Location
	items    map[string]*item
	// failing means that the last round failed, and that the log has the reason.
	failing bool
	manager *manager // of its cluster
	// askAfter is the earliest time at which the manager is asked again for an image of this
	// pool; denied means that the log has the reason.
	askAfter time.Time
	denied   bool
}

// item is an image to remove.
type item struct {
	removal journal.Removal
	// woken means that Wake was called since a round last looked.
	woken bool
	// left is what is left of its size, told when the log last said so.
	left uint64
	told time.Time
	// due is when it is looked at next; delay is what its last retry waited for.
	due   time.Time
	delay time.Duration
	// absent is since when it has been missing from the trash; zero while it is there.
	absent time.Time
	// remover is ByManager or ByProvisioner, whichever was last asked; empty for none.
	remover string
	// oursFrom is when this process begins to remove it; zero if no manager was asked.
	oursFrom time.Time
	// logged means that the log says why it stays; warned, that an event does.
	logged, warned bool
}

// New returns an empty queue to Run, or an error that says that a field is missing.
func New(c Config) (*Queue, error) {
	if c.Access == nil || c.Journal == nil || c.Volumes.Cache == nil || c.Events == nil || c.Quiet == nil || c.Purged == nil {
		return nil, errors.New("trash: all fields are required")
	}
	return &Queue{config: c, work: work.NewQueue[volume.PoolID](), pools: map[volume.PoolID]*pool{}, managers: map[string]*manager{}}, nil
}

// Run removes images when they are due, until ctx ends and calls in flight have
// returned. The next leader goes on with unfinished removals. Call it once.
func (q *Queue) Run(ctx context.Context) { q.work.Run(ctx, width, q.round) }

// Move notes a pending deletion, moves the image to the trash, and queues it. Call it with
// the image locked in the journal. Errors: those of SetNotes and TrashImage; the image is
// queued, too, after those with which it may be in the trash nevertheless.
func (q *Queue) Move(ctx context.Context, pool *access.Pool, removal journal.Removal) error {
	if err := q.config.Journal.Removals.Write(ctx, pool, removal); err != nil {
		return err
	}
	err := pool.TrashImage(ctx, removal.Image, removal.Keep)
	if err == nil || errors.Is(err, rbd.ErrImageNotFound) || errors.Is(err, rbd.ErrTimeout) || errors.Is(err, rbd.ErrConnectionLost) {
		q.Add(pool.ID, pool.Location, removal)
	}
	return err
}

// Add queues an image to remove, of which the journal has a note. The location is how
// its pool was opened. Call it with the image locked in the journal.
func (q *Queue) Add(id volume.PoolID, location volume.Location, removal journal.Removal) {
	q.mu.Lock()
	defer q.mu.Unlock()
	in := q.pools[id]
	if in == nil {
		if q.managers[id.FSID] == nil {
			q.managers[id.FSID] = &manager{}
		}
		in = &pool{id: id, items: map[string]*item{}, manager: q.managers[id.FSID]}
		q.pools[id] = in
	}
	in.location = location
	// An image that was restored and deleted again has a new pending deletion.
	if known := in.items[removal.ID]; known == nil || !known.removal.At.Equal(removal.At) {
		in.items[removal.ID] = &item{removal: removal, left: removal.SizeBytes, due: removal.Due()}
		q.work.AddAfter(id, time.Until(removal.Due()))
	}
}

// Wake says that an image may have no clones any more. If it is due, it is tried now.
func (q *Queue) Wake(id volume.PoolID, imageID string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if in := q.pools[id]; in != nil && in.items[imageID] != nil {
		in.items[imageID].woken = true
		q.work.Add(id)
	}
}

// Counts returns how many images are due for removal, and how many are still kept.
func (q *Queue) Counts() (waiting, kept int) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, in := range q.pools {
		for _, one := range in.items {
			if now.Before(one.removal.Due()) {
				kept++
			} else {
				waiting++
			}
		}
	}
	return waiting, kept
}

// Visit takes up the pending deletions of earlier leaders in a pool, once for each pool.
// Its errors are those of Removals.Read.
func (q *Queue) Visit(ctx context.Context, open *access.Pool) error {
	if _, visited := q.visited.Load(open.ID); visited {
		return nil
	}
	removals, unreadable, err := q.config.Journal.Removals.Read(ctx, open)
	if err != nil {
		return err
	}
	logger := klog.FromContext(ctx).WithValues("pool", open.ID.Pool)
	if len(unreadable) > 0 {
		logger.Info("Removals of another version are left alone", "object", q.config.Journal.Removals.Object, "ids", unreadable)
	}
	if len(removals) > 0 {
		logger.Info("Taking up the removal of images in the trash", "count", len(removals))
	}
	for _, removal := range removals {
		q.Add(open.ID, open.Location, removal)
	}
	q.visited.Store(open.ID, true)
	return nil
}

// round removes the images of a pool that are due, and says when the pool comes again.
func (q *Queue) round(ctx context.Context, id volume.PoolID) error {
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("pool", id.Pool))
	in, location, due, again := q.due(id)
	if len(due) == 0 {
		return again
	}
	err := q.removeAll(ctx, in, location, due)
	failed := !work.IsLater(err)
	if failed && !in.failing && ctx.Err() == nil {
		klog.FromContext(ctx).Info("Images of deleted volumes could not be removed from the trash, will retry", "err", err)
	}
	in.failing = failed
	return err
}

// due returns a pool, its location and the images whose turn it is, the smallest and then the
// oldest first. If there are none, again says when to look again: nil for never.
func (q *Queue) due(id volume.PoolID) (in *pool, location volume.Location, due []*item, again error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	in = q.pools[id]
	var next time.Time
	for _, one := range in.items {
		if one.woken {
			one.woken, one.due = false, one.removal.Due()
			// What kept this process from removing it made the manager fail, too.
			if !one.oursFrom.IsZero() {
				one.oursFrom = time.Now()
			}
		}
		if q.isTurn(one) {
			due = append(due, one)
		}
		if again == nil || one.due.Before(next) {
			next = one.due
			again = work.Later(max(time.Until(next), pause))
		}
	}
	slices.SortFunc(due, func(a, b *item) int {
		return cmp.Or(cmp.Compare(a.left, b.left), a.due.Compare(b.due))
	})
	return in, in.location, due, again
}

// isTurn reports whether an image is due, and need not give way to claims and volumes.
func (q *Queue) isTurn(one *item) bool {
	age := time.Since(one.due)
	return age >= patience || age >= 0 && q.config.Quiet(quiet)
}

// removeAll removes images of a pool. It returns when the pool comes again, or an error
// with which its other images would fail, too.
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
		if ctx.Err() != nil || !q.isTurn(one) {
			break
		}
		if err := r.settle(ctx, one); err != nil {
			if !work.IsLater(err) && !errors.Is(err, rbd.ErrImageBusy) {
				one.retry() // others come first in the next round: only this one may fail
			}
			return access.Explain(err, location)
		}
	}
	return work.Later(pause)
}
