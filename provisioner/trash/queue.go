// SPDX-License-Identifier: Apache-2.0

// Package trash removes the images of deleted volumes from the trash, once their
// retention has passed. It removes only images that a note of the journal names.
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
	// width is the number of pools in which images are removed at the same time; in
	// each pool, it is one image at a time.
	width = 4
	// patience is how long the removal of an image gives way to claims and volumes. No
	// user waits for a removal, only for the room that the image takes.
	patience = 10 * time.Second
	// quiet is how long claims and volumes must have been idle before a removal begins.
	// Ceph's manager takes a hundred times the CPU for an image that its volume's
	// deletion does, on cores that may serve claims, too.
	quiet = time.Second
	// pause is the least time between two rounds through a pool, unless a call asks for
	// one.
	pause = time.Second
)

// Config has what New needs. All fields are required but Quiet and Purged.
type Config struct {
	// Access opens pools. It knows the lease, if there is one.
	Access  *access.Access
	Journal *journal.Journal
	// Volumes finds volumes that name an image again.
	Volumes index.Volumes
	// Events tells such a volume that its image is in the trash.
	Events record.EventRecorder
	// Quiet reports whether no operation on a claim or volume is in flight, or was
	// within d. Nil means that it is always quiet.
	Quiet func(d time.Duration) bool
	// Purged is called for each removed image, with its remover: ByManager or
	// ByProvisioner. Several goroutines call it; it may be nil.
	Purged func(by string)
}

// Queue holds the images to remove. It is safe for concurrent use.
type Queue struct {
	config Config
	// work holds pools, not images: a pool's images are removed one after the other, on
	// one connection.
	work *work.Queue[volume.PoolID]
	// retries says when to retry an image that could not be removed.
	retries workqueue.TypedRateLimiter[*item]
	// visited holds the pools whose notes were taken up.
	visited sync.Map

	mu    sync.Mutex // guards the fields below
	pools map[volume.PoolID]*pool
}

// pool holds images to remove. The worker in it owns the fields that Queue.mu does not
// guard.
type pool struct {
	id volume.PoolID
	// location opens it; items are by image ID. Queue.mu guards both.
	location volume.Location
	items    map[string]*item
	// failing means that the last round failed, and that the log has the reason.
	failing bool
	manager manager
}

// item is an image to remove. The worker in its pool owns the fields that Queue.mu does
// not guard.
type item struct {
	removal journal.Removal
	// due is when a round looks at it next; woken means that Wake has brought that
	// forward. Queue.mu guards both.
	due   time.Time
	woken bool
	// absent is since when it has been missing from the trash; zero while it is there.
	absent time.Time
	// by names the remover that was last asked; empty for none.
	by string
	// ours is the time from which this process removes it; zero if Ceph's manager has
	// not been asked.
	ours time.Time
	// said means that the log has the reason why it stays; told, that an event told a
	// volume that names it again.
	said, told bool
}

// New returns an empty queue to Run, or an error that names the missing fields.
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

// Run removes images when they are due, until ctx ends and calls in flight have
// returned. The next leader goes on with unfinished removals. Call it once.
func (q *Queue) Run(ctx context.Context) { q.work.Run(ctx, width, q.round) }

// Add queues an image to remove, of which the journal has a note. The location is how
// its pool was opened. Call it with the image locked in the journal.
func (q *Queue) Add(id volume.PoolID, location volume.Location, removal journal.Removal) {
	q.mu.Lock()
	defer q.mu.Unlock()
	in := q.pool(id)
	in.location = location
	// An image that was restored and deleted again has a new pending deletion.
	if known := in.items[removal.ID]; known == nil || !known.removal.At.Equal(removal.At) {
		q.retries.Forget(known)
		in.items[removal.ID] = &item{removal: removal, due: removal.Due()}
		q.work.AddAfter(id, time.Until(removal.Due()))
	}
}

// Wake says that an image may have no clones any more: if its removal is due, a round
// tries it now.
func (q *Queue) Wake(id volume.PoolID, imageID string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	one := q.pool(id).items[imageID]
	if one != nil && !time.Now().Before(one.removal.Due()) {
		one.due, one.woken = one.removal.Due(), true
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

// Visit takes up the pending deletions of earlier leaders in a pool, once for each
// pool. It returns the errors of reading notes.
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

// pool returns the pool of an ID, which it makes if need be. The caller holds q.mu.
func (q *Queue) pool(id volume.PoolID) *pool {
	in := q.pools[id]
	if in == nil {
		in = &pool{id: id, items: map[string]*item{}}
		q.pools[id] = in
	}
	return in
}
