// SPDX-License-Identifier: Apache-2.0

// Package pools knows which pools are ours, and has Visitors look at each of them. It
// does not know what they look for.
package pools

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	// lookEvery is how often Rounds searches classes and volumes for pools that no
	// visitor has been to.
	lookEvery = 5 * time.Minute
	// againAfter is how long Again waits, to serve several calls with one visit.
	againAfter = 5 * time.Second
	// workers is the number of visits at a time: a slow pool takes one of them for each
	// visitor.
	workers = 8
)

// ErrLeft is the error of a Visitor that must come back although nothing went wrong.
var ErrLeft = errors.New("something is left to be done in the pool")

// Visitor looks at pools.
type Visitor interface {
	// Visit looks at one pool, which it does not close. Nil means that nothing is left
	// to do there. After ErrLeft, or any other error, which Rounds logs once, Rounds
	// calls it again by the retry policy of package work; after work.Later, when that
	// says so. Visits of one pool come one after the other, those of several pools at
	// the same time.
	Visit(ctx context.Context, pool *access.Pool) error
}

// Config has what New needs. All fields are required.
type Config struct {
	// Name is the provisioner that StorageClasses name; Identity tells ours from others
	// of that name.
	Name, Identity string
	// Classes and Volumes are caches; they name the pools.
	Classes storagelisters.StorageClassLister
	Volumes corelisters.PersistentVolumeLister
	Access  *access.Access
	// Visitors are independent of one another: each has its own retries.
	Visitors []Visitor
}

// Rounds has every pool visited. It is safe for concurrent use.
type Rounds struct {
	config Config
	queue  *work.Queue[visit]

	mu sync.Mutex // guards the fields below
	// leads maps each route to the pool to which it was found to lead.
	leads map[volume.Route]volume.PoolID
	// states holds all known visits.
	states map[visit]state
	// known holds the ways of the last look: finding them goes through all volumes.
	known []way
	// said holds the faults that are in the log.
	said map[fault]bool
}

// visit is one visitor's visit to one pool; or nobody's to an unknown pool, to learn
// which one it is.
type visit struct {
	pool    volume.PoolID
	visitor int
	unknown volume.Route
}

// nobody stands for no visitor.
const nobody = -1

// state is how far a visit is.
type state int

const (
	waiting state = iota + 1 // in the queue
	running
	repeat // running, and to be repeated
	made   // nothing is left to do
)

// fault identifies a failure of one visitor on one route.
type fault struct {
	route   volume.Route
	visitor int
}

// New returns Rounds, or an error if a field is missing.
func New(c Config) (*Rounds, error) {
	if c.Name == "" || c.Identity == "" || c.Classes == nil || c.Volumes == nil || c.Access == nil || len(c.Visitors) == 0 {
		return nil, errors.New("pools: all fields are required")
	}
	return &Rounds{
		config: c,
		queue:  work.NewQueue[visit](),
		leads:  map[volume.Route]volume.PoolID{},
		states: map[visit]state{},
		said:   map[fault]bool{},
	}, nil
}

// Run has every pool visited until nothing is left to do there, and new pools once
// Rounds notices them. It ends when ctx has ended and all visits have returned. Run it
// once, while leading.
func (r *Rounds) Run(ctx context.Context) {
	var looking sync.WaitGroup
	looking.Go(func() { wait.UntilWithContext(ctx, r.look, lookEvery) })
	r.queue.Run(ctx, workers, r.do)
	looking.Wait()
}

// Again has a pool visited soon even where nothing was left to do: something may be by
// now. It is cheap. It does not hasten visits that will be repeated anyway.
func (r *Rounds) Again(pool volume.PoolID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.config.Visitors {
		v := visit{pool: pool, visitor: i}
		switch r.states[v] {
		case waiting, repeat:
		case running:
			r.states[v] = repeat
		default:
			r.states[v] = waiting
			r.queue.AddAfter(v, againAfter)
		}
	}
}

// look queues the first visits to pools that have had none.
func (r *Rounds) look(ctx context.Context) {
	for _, w := range r.list(ctx, true) {
		if pool := r.end(w); pool.FSID != "" {
			r.first(pool)
		} else {
			r.add(visit{unknown: w.route, visitor: nobody})
		}
	}
}

// first queues the first visits to a pool, unless it had them.
func (r *Rounds) first(pool volume.PoolID) {
	for i := range r.config.Visitors {
		r.add(visit{pool: pool, visitor: i})
	}
}

// add queues a visit that is not known yet.
func (r *Rounds) add(v visit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.states[v] == 0 {
		r.states[v] = waiting
		r.queue.Add(v)
	}
}

// do makes a visit and records its state.
func (r *Rounds) do(ctx context.Context, v visit) error {
	r.mu.Lock()
	r.states[v] = running
	r.mu.Unlock()
	found, err := r.try(ctx, v)

	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err != nil:
		r.states[v] = waiting // the queue retries it, whatever Again said meanwhile
	case r.states[v] == repeat:
		r.states[v] = waiting
		return work.Later(againAfter)
	case found:
		r.states[v] = made
	default:
		delete(r.states, v) // until a class or volume names the pool again
	}
	return err
}

// try makes a visit by any way that leads to the pool, and reports whether there is
// one. If no known way does, it looks for new ones, and tries those that may have led
// elsewhere before.
func (r *Rounds) try(ctx context.Context, v visit) (found bool, err error) {
	var faults []error
	tried := map[volume.Route]bool{}
	for _, anew := range []bool{false, true} {
		for _, w := range r.list(ctx, anew) {
			if tried[w.route] || !r.mayLead(w, v, anew) {
				continue
			}
			tried[w.route] = true
			found, err := r.by(ctx, w, v)
			if found {
				return true, err
			}
			if err != nil {
				faults = append(faults, err)
			}
		}
	}
	return false, errors.Join(faults...)
}

// mayLead reports whether a way leads to where a visit goes. With anybody set, a way to
// a pool of the same name will do.
func (r *Rounds) mayLead(w way, v visit, anybody bool) bool {
	if v.visitor == nobody {
		return v.unknown == w.route
	}
	return r.end(w) == v.pool || anybody && w.location.Pool == v.pool.Pool
}

// list returns the ways of the last look, or of a new one.
func (r *Rounds) list(ctx context.Context, anew bool) []way {
	if !anew {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.known
	}
	ways := r.ways(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = ways
	return ways
}

// by makes a visit by one way, and reports whether it was the right one. If not, an
// error says that it may be once the fault is mended.
func (r *Rounds) by(ctx context.Context, w way, v visit) (right bool, err error) {
	pool, err := r.config.Access.OpenForVolume(ctx, w.location)
	r.say(ctx, w, nobody, err)
	if err != nil {
		return false, err
	}
	defer pool.Close()
	r.mu.Lock()
	r.leads[w.route] = pool.ID
	r.mu.Unlock()
	r.first(pool.ID)
	if v.visitor == nobody {
		return true, nil
	}
	if pool.ID != v.pool {
		return false, nil
	}
	err = access.Explain(r.config.Visitors[v.visitor].Visit(ctx, pool), w.location)
	r.say(ctx, w, v.visitor, err)
	return !errors.Is(err, rbd.ErrPermissionDenied), err
}

// say logs what keeps a visitor from its work, once until that is over.
func (r *Rounds) say(ctx context.Context, w way, visitor int, err error) {
	wrong := err != nil && !errors.Is(err, ErrLeft) && !work.IsLater(err) && ctx.Err() == nil
	key := fault{w.route, visitor}
	r.mu.Lock()
	said := r.said[key]
	if wrong {
		r.said[key] = true
	} else {
		delete(r.said, key)
	}
	r.mu.Unlock()
	if wrong && !said {
		klog.FromContext(ctx).Info("A pool could not be visited, will retry",
			"pool", w.location.Pool, "user", w.location.User, "err", err)
	}
}
