// SPDX-License-Identifier: Apache-2.0

// Package pools knows which pools are ours, and has Visitors look at each of them. It
// does not know what they look for.
package pools

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	// lookEvery is how often Rounds searches classes and volumes for new pools.
	lookEvery = 5 * time.Minute
	// againAfter is how long Again waits, to serve several calls with one visit.
	againAfter = 5 * time.Second
	// workers is the number of visits at a time: a slow pool takes one for each visitor.
	workers = 8
)

// ErrLeft is the error of a Visitor that must come back although nothing went wrong.
var ErrLeft = errors.New("something is left to be done in the pool")

// Visitor looks at pools.
type Visitor interface {
	// Visit looks at one pool, which it does not close. Nil means that nothing is left to
	// do there. After ErrLeft, or any other error, which Rounds logs once, Rounds calls it
	// again by the retry policy of package work; after work.Later, when that says so.
	// Visits of one pool come one after the other, those of several at the same time.
	Visit(ctx context.Context, pool *access.Pool) error
}

// Config has what New needs. All fields are required.
type Config struct {
	// Name is the provisioner in StorageClasses; Identity tells ours from others so named.
	Name, Identity string
	// Classes and Volumes are caches; they name the pools.
	Classes storagelisters.StorageClassLister
	Volumes corelisters.PersistentVolumeLister
	Access  *access.Access
	// Visitors are independent: each has its own retries. They must be comparable.
	Visitors []Visitor
}

// Rounds has every pool visited. It is safe for concurrent use.
type Rounds struct {
	config Config
	queue  *work.Queue[visit]

	mu sync.Mutex // guards the fields below
	// ways holds those of the last look: finding them goes through all volumes.
	ways []way
	// leads maps each route to the pool to which it was found to lead, or else to which a
	// volume says that it leads. Without FSID, the pool is unknown.
	leads map[volume.Route]volume.PoolID
	// known has the pools whose first visits were queued.
	known map[volume.PoolID]bool
	// pending has the visits that are queued or run; true means that another has to follow.
	pending map[visit]bool
	// logged has the faults that are in the log.
	logged map[fault]bool
}

// way leads to a pool.
type way struct {
	location volume.Location
	route    volume.Route
	// says is where a volume says that the way leads; without FSID if none does.
	says volume.PoolID
}

// visit is a visitor's visit to a pool; or, without a visitor, a look for it or any new ones.
type visit struct {
	pool    volume.PoolID
	visitor Visitor
}

// fault is a failure on a route: of one visitor, or to open the pool.
type fault struct {
	route   volume.Route
	visitor Visitor
}

// New returns Rounds, or an error if a field is missing.
func New(c Config) (*Rounds, error) {
	if c.Name == "" || c.Identity == "" || c.Classes == nil || c.Volumes == nil || c.Access == nil || len(c.Visitors) == 0 {
		return nil, errors.New("pools: all fields are required")
	}
	return &Rounds{
		config:  c,
		queue:   work.NewQueue[visit](),
		leads:   map[volume.Route]volume.PoolID{},
		known:   map[volume.PoolID]bool{},
		pending: map[visit]bool{},
		logged:  map[fault]bool{},
	}, nil
}

// Run has every pool visited until nothing is left to do there, and new ones once noticed. It
// ends when ctx has ended and all visits have returned. Run it once, while leading.
func (r *Rounds) Run(ctx context.Context) {
	r.queue.Add(visit{})
	r.queue.Run(ctx, workers, r.do)
}

// Again has a pool visited soon even where nothing was left to do: something may be by
// now. It is cheap. It does not hasten visits that will be repeated anyway.
func (r *Rounds) Again(pool volume.PoolID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[pool] {
		r.ask(pool, againAfter)
	} else {
		r.queue.AddAfter(visit{pool: pool}, againAfter)
	}
}

// ask queues a visit of each visitor to a pool, or notes that its pending one has to be
// followed by another. The caller holds r.mu.
func (r *Rounds) ask(pool volume.PoolID, after time.Duration) {
	for _, visitor := range r.config.Visitors {
		v := visit{pool, visitor}
		_, pending := r.pending[v]
		r.pending[v] = pending
		if !pending {
			r.queue.AddAfter(v, after)
		}
	}
}

// do makes a visit, or looks for pools.
func (r *Rounds) do(ctx context.Context, v visit) error {
	if v.visitor == nil {
		return r.look(ctx, v.pool.Pool)
	}
	r.mu.Lock()
	r.pending[v] = false
	r.mu.Unlock()
	found, err := r.try(ctx, v)

	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		return err // the queue retries it, whatever Again said meanwhile
	case r.pending[v]:
		return work.Later(againAfter)
	}
	delete(r.pending, v)
	if !found {
		delete(r.known, v.pool) // until a class or volume names it again
	}
	return nil
}

// look finds new pools. It tries the ways of which nobody knows where they lead. If name is
// not empty, it also tries those to pools of that name, which may lead to another cluster by
// now, and does not come again.
func (r *Rounds) look(ctx context.Context, name string) error {
	ways := r.list()
	var unknown []way
	r.mu.Lock()
	r.ways = ways
	for _, w := range ways {
		if r.leads[w.route].FSID == "" {
			r.leads[w.route] = w.says
		}
		if pool := r.leads[w.route]; pool.FSID == "" || pool.Pool == name {
			unknown = append(unknown, w)
		} else {
			r.first(pool)
		}
	}
	r.mu.Unlock()

	var opening errgroup.Group
	opening.SetLimit(workers)
	for _, w := range unknown {
		opening.Go(func() error {
			_, err := r.visitBy(ctx, w, visit{})
			return err
		})
	}
	if err := opening.Wait(); err != nil || name != "" {
		return err
	}
	return work.Later(lookEvery)
}

// first has a new pool visited. The caller holds r.mu.
func (r *Rounds) first(pool volume.PoolID) {
	if !r.known[pool] {
		r.known[pool] = true
		r.ask(pool, 0)
	}
}

// try makes a visit by any way that leads to the pool, and reports whether there is one.
func (r *Rounds) try(ctx context.Context, v visit) (found bool, err error) {
	r.mu.Lock()
	ways := slices.DeleteFunc(slices.Clone(r.ways), func(w way) bool { return r.leads[w.route] != v.pool })
	r.mu.Unlock()
	var faults []error
	for _, w := range ways {
		right, err := r.visitBy(ctx, w, v)
		if right {
			return true, err
		}
		faults = append(faults, err)
	}
	return false, errors.Join(faults...)
}

// visitBy makes a visit by one way, and reports whether it was the right one. If not, an
// error says that it may be once the fault is mended.
func (r *Rounds) visitBy(ctx context.Context, w way, v visit) (right bool, err error) {
	pool, err := r.config.Access.OpenForVolume(ctx, w.location)
	r.say(ctx, w, nil, err)
	if err != nil {
		return false, err
	}
	defer pool.Close()
	r.mu.Lock()
	r.leads[w.route] = pool.ID
	r.first(pool.ID)
	r.mu.Unlock()
	if pool.ID != v.pool {
		return false, nil
	}
	err = access.Explain(v.visitor.Visit(ctx, pool), w.location)
	r.say(ctx, w, v.visitor, err)
	return !errors.Is(err, rbd.ErrPermissionDenied), err
}

// say logs what keeps a visitor from its work, once until that is over.
func (r *Rounds) say(ctx context.Context, w way, visitor Visitor, err error) {
	wrong := err != nil && !errors.Is(err, ErrLeft) && !work.IsLater(err) && ctx.Err() == nil
	r.mu.Lock()
	defer r.mu.Unlock()
	if wrong && !r.logged[fault{w.route, visitor}] {
		klog.FromContext(ctx).Info("A pool could not be visited, will retry", "pool", w.location.Pool, "user", w.location.User, "err", err)
	}
	r.logged[fault{w.route, visitor}] = wrong
}

// list returns the ways that our classes and volumes name, those of classes first. Pools
// that neither names any more are not visited: nothing says who opens them.
func (r *Rounds) list() []way {
	var ways []way
	listed := map[volume.Route]bool{}
	add := func(location volume.Location, says volume.PoolID) {
		if route := location.Route(); !listed[route] {
			listed[route] = true
			ways = append(ways, way{location, route, says})
		}
	}
	classes, _ := r.config.Classes.List(labels.Everything()) // a cache has no errors
	for _, class := range classes {
		// Events on its claims report a faulty class.
		location, err := storageclass.ParseLocation(class.Parameters)
		if err == nil && class.Provisioner == r.config.Name {
			add(location, volume.PoolID{})
		}
	}
	volumes, _ := r.config.Volumes.List(labels.Everything()) // a cache has no errors
	for _, pv := range volumes {
		if !volume.MadeBy(pv, r.config.Name, r.config.Identity) {
			continue
		}
		record, err := volume.Read(pv)
		if err != nil || !record.Complete() {
			continue // made by another program
		}
		if location, err := record.Location(); err == nil {
			add(location, record.PoolID())
		}
	}
	return ways
}
