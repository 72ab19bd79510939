// SPDX-License-Identifier: Apache-2.0

// Package trash removes the images of deleted volumes from the trash, once they have
// been there for as long as they are kept. It removes those alone that a note of the
// journal names.
package trash

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	// width is in how many pools images are removed at the same time; in each it is
	// one at a time.
	width = 4
	// patience is how long the removal of an image gives way to claims and volumes.
	// Nobody waits for it, but for the room that the image takes.
	patience = 10 * time.Second
	// quiet is how long nothing has happened to claims and volumes when it begins.
	// Ceph's manager takes a hundred times the CPU for an image that its volume's
	// deletion does, of the cores that may serve claims, too.
	quiet = time.Second
	// pause is the least time between two rounds through a pool that nobody asks for.
	pause = time.Second
)

// Config has what New needs. All fields are required but Quiet and Purged.
type Config struct {
	// Access opens pools. It knows of the lease, if there is one.
	Access  *access.Access
	Journal *journal.Journal
	// Volumes shows which volumes name an image again.
	Volumes index.Volumes
	// Events tells such a volume that its image is in the trash.
	Events record.EventRecorder
	// Quiet reports whether no claim or volume is worked on, nor was within d. Nil
	// means that it is always quiet.
	Quiet func(d time.Duration) bool
	// Purged is told of each image that was removed, and of who did that: ByManager
	// or ByProvisioner. It is called by several goroutines; nil for nobody.
	Purged func(by string)
}

// Queue has the images that are to be removed. It is safe for concurrent use.
type Queue struct {
	config Config
	// work has the pools, not the images: those of a pool are removed one after the
	// other, and on one connection.
	work *work.Queue[volume.PoolID]
	// retries says when an image that can't be removed is tried again.
	retries workqueue.TypedRateLimiter[*item]
	// visited has the pools whose notes were taken up.
	visited sync.Map

	mu    sync.Mutex // guards what follows
	pools map[volume.PoolID]*pool
}

// pool has images to remove. The worker that is in it owns the fields that Queue.mu
// does not guard.
type pool struct {
	id volume.PoolID
	// location opens it, items are by image ID; guarded by Queue.mu.
	location volume.Location
	items    map[string]*item
	// failing says that the last round failed, and that the log has why.
	failing bool
	manager manager
}

// item is an image to remove. The worker that is in its pool owns the fields that
// Queue.mu does not guard.
type item struct {
	removal journal.Removal
	// due is when it is looked at next, woken that Wake has brought that forward;
	// guarded by Queue.mu.
	due   time.Time
	woken bool
	// absent is since when it is not in the trash; zero while it is.
	absent time.Time
	// by names who was last asked to remove it; empty for nobody.
	by string
	// ours is from when on it is removed here; zero if Ceph's manager has not been
	// asked to.
	ours time.Time
	// said says that the log has why it stays, told that a volume that names it again
	// was told.
	said, told bool
}

// New returns an empty queue, which is to be Run; or an error that names what c lacks.
func New(c Config) (*Queue, error) {
	if c.Access == nil || c.Journal == nil || c.Volumes.Cache == nil || c.Events == nil {
		return nil, errors.New("trash: Access, Journal, Volumes and Events are required")
	}
	if c.Quiet == nil {
		c.Quiet = func(time.Duration) bool { return true }
	}
	if c.Purged == nil {
		c.Purged = func(string) {}
	}
	return &Queue{config: c, work: work.NewQueue[volume.PoolID](), retries: work.NewRateLimiter[*item](),
		pools: map[volume.PoolID]*pool{}}, nil
}

// Run removes images when they are due, until ctx ends and the calls that are under way
// have returned. What it is in the middle of then, the next leader goes on with. It is
// to be called once.
func (q *Queue) Run(ctx context.Context) { q.work.Run(ctx, width, q.round) }

// Add says that an image is to be removed, of which the journal has a note. The location
// is how its pool was opened. Call it with the image locked in the journal.
func (q *Queue) Add(id volume.PoolID, location volume.Location, removal journal.Removal) {
	q.mu.Lock()
	defer q.mu.Unlock()
	in := q.pool(id)
	in.location = location
	// One that was restored since, and deleted again, has a removal anew.
	if known := in.items[removal.ID]; known == nil || !known.removal.At.Equal(removal.At) {
		q.retries.Forget(known)
		in.items[removal.ID] = &item{removal: removal, due: removal.Due()}
		q.work.AddAfter(id, time.Until(removal.Due()))
	}
}

// Wake says that an image may have no clones any more: if it is to be removed, that is
// tried now.
func (q *Queue) Wake(id volume.PoolID, imageID string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	one := q.pool(id).items[imageID]
	if one != nil && !time.Now().Before(one.removal.Due()) {
		one.due, one.woken = one.removal.Due(), true
		q.work.Add(id)
	}
}

// Counts returns how many images are to be removed now, and how many are kept for a
// while.
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

// Visit takes up what earlier leaders were to remove in a pool, once for each pool. The
// errors are those of reading notes.
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

// pool returns a pool. q.mu is held.
func (q *Queue) pool(id volume.PoolID) *pool {
	in := q.pools[id]
	if in == nil {
		in = &pool{id: id, items: map[string]*item{}}
		q.pools[id] = in
	}
	return in
}
