// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/sets"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// ErrBusy says that a cluster is slow, and that as many operations as allowed already
// wait for it. Nothing was changed.
var ErrBusy = errors.New("the Ceph cluster is slow to answer, and other operations already wait for it")

const (
	// lately is how long the gate remembers a route that is not used any more.
	lately = 10 * time.Minute
	// placeWait bounds the wait for a place: the worker could serve another cluster.
	placeWait = 2 * time.Second
	// A cluster is quick, and needs no limit, if it answered within freshTime and no
	// operation has waited for an answer for slowTime.
	freshTime = time.Second
	slowTime  = 5 * time.Second
)

// gate keeps a cluster that does not answer from holding all the workers, by two means:
//
//   - A circuit breaker per route, since pools of one cluster fail one by one, and a
//     wrong key can look like silent monitors. Once a call waited in vain and no other
//     one got an answer meanwhile, one operation at a time tries; others fail at once.
//     The first answer ends this. There is no timer: all is retried anyway.
//   - A limiter per list of monitors, for the time before that is known and while a
//     cluster answers in part. If another cluster is in use, and answers do not come
//     quickly, the cluster holds half of the workers at most. Claims and volumes have
//     workers of their own, so they are counted apart. A user that has not opened a pool
//     of the cluster yet holds a quarter at most, all such users half, and its waiting is
//     no sign that the cluster is slow: OSDs may be silent towards that user alone.
type gate struct {
	half int // of the workers for each use

	mu     sync.Mutex // guards all that follows, and what is in it
	routes map[volume.Route]*route
	inside sets.Set[*visit]
	// changed is closed, and replaced, when a waiting operation may go on.
	changed chan struct{}
}

// use is what a pool is opened for.
type use int

const (
	forClaim use = iota
	forVolume
)

// route is a route that was used lately.
type route struct {
	monitors, user string
	used           time.Time
	answered       time.Time
	served         bool  // a pool was opened
	fault          error // why the circuit breaker is open; nil if it is not
}

// visit is an operation that the gate let in.
type visit struct {
	gate  *gate
	route *route
	use   use
	probe bool        // finds out whether the route answers again
	since time.Time   // when it came in, or last got an answer
	slow  atomic.Bool // its call may take long without any fault
}

// newGate returns a gate for a number of workers for each use; 0 means no limit.
func newGate(workers int) *gate {
	half := math.MaxInt
	if workers > 0 {
		half = max(1, workers/2)
	}
	return &gate{half: half, routes: map[volume.Route]*route{}, inside: sets.New[*visit](), changed: make(chan struct{})}
}

// enter lets an operation in, which must leave later. It waits for a place for placeWait
// at most. Errors: ErrBusy; ErrUnreachable or ErrTimeout if no answer came lately.
func (g *gate) enter(ctx context.Context, l volume.Location, u use) (*visit, error) {
	ctx, cancel := context.WithTimeout(ctx, placeWait)
	defer cancel()
	for {
		v, changed, err := g.admit(l, u)
		if v != nil || err != nil {
			return v, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("monitors %q: %w", l.Route().Monitors, ErrBusy)
		}
	}
}

// admit lets an operation in, refuses it, or returns a channel to wait for.
func (g *gate) admit(l volume.Location, u use) (*visit, <-chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.forget(now)
	key := l.Route()
	r := g.routes[key]
	if r == nil {
		r = &route{monitors: key.Monitors, user: l.User}
		g.routes[key] = r
	}
	r.used = now

	probe := r.fault != nil
	switch {
	case probe && !g.mayProbe(r):
		return nil, nil, fmt.Errorf("pool %q, monitors %q, user %q: no answer lately (%w): "+
			"only one attempt at a time is made, and this one waits its turn", l.Pool, r.monitors, l.User, kind(r.fault))
	case !probe && !g.hasPlace(r, u, now):
		return nil, g.changed, nil
	}
	v := &visit{gate: g, route: r, use: u, probe: probe, since: now}
	g.inside.Insert(v)
	return v, nil, nil
}

// forget drops the routes that were not used lately.
func (g *gate) forget(now time.Time) {
	for v := range g.inside {
		v.route.used = now // a visit to the trash may take hours
	}
	maps.DeleteFunc(g.routes, func(_ volume.Route, r *route) bool { return now.Sub(r.used) > lately })
}

// mayProbe reports whether an operation may try a route that gave no answer: no other one
// does, and others do not try with half of the workers already.
func (g *gate) mayProbe(r *route) bool {
	probes := func(v *visit) bool { return v.probe }
	here := func(v *visit) bool { return v.probe && v.route == r }
	return g.count(here) == 0 && g.count(probes) < g.half
}

// hasPlace reports whether the limiter lets one more operation go to the cluster of r.
func (g *gate) hasPlace(r *route, u use, now time.Time) bool {
	only, answers := true, false
	served := sets.New[string]() // users of the cluster
	for _, other := range g.routes {
		if other.monitors != r.monitors {
			only = false
			continue
		}
		answers = answers || now.Sub(other.answered) <= freshTime
		if other.served {
			served.Insert(other.user)
		}
	}
	here := func(v *visit) bool { return v.route.monitors == r.monitors && v.use == u }
	own := func(v *visit) bool { return here(v) && v.route.user == r.user }
	waits := func(v *visit) bool {
		return here(v) && served.Has(v.route.user) && !v.slow.Load() && now.Sub(v.since) > slowTime
	}
	unserved := func(v *visit) bool { return here(v) && !served.Has(v.route.user) }
	if !served.Has(r.user) && (g.count(own) >= max(1, g.half/2) || g.count(unserved) >= g.half) {
		return false
	}
	return only || g.count(here) < g.half || answers && g.count(waits) == 0
}

func (g *gate) count(is func(*visit) bool) int {
	n := 0
	for v := range g.inside {
		if is(v) {
			n++
		}
	}
	return n
}

// opened tells the gate that the pool is open, so that OSDs answer the user.
func (v *visit) opened() {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	if !v.route.served {
		v.route.served = true
		v.gate.wake()
	}
}

// ends tells the gate how a call ended; began is when it started.
func (v *visit) ends(op rbd.Op, began time.Time, err error) {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	v.slow.Store(false)
	switch {
	case op.Name == rbd.OpHandOverTrashed:
		// It asks Ceph's manager, whose answer or silence says nothing about the pool.
	case errors.Is(err, rbd.ErrImageBusy), errors.Is(err, rbd.ErrConnectionLost):
		// No news for the next attempt, on another image or over a new connection.
	case errors.Is(err, rbd.ErrUnreachable), errors.Is(err, rbd.ErrTimeout):
		// If other calls got an answer meanwhile, something other than the route is slow:
		// one image, one group of objects.
		if op.Slow || v.route.answered.After(began) {
			return
		}
		v.route.fault = err
		v.gate.wake()
	default:
		v.since = time.Now()
		v.route.answered, v.route.fault = v.since, nil
		v.gate.wake()
	}
}

// leave frees the place. Calling it twice is harmless.
func (v *visit) leave() {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	v.gate.inside.Delete(v)
	v.gate.wake()
}

// wake lets waiting operations look again. The caller holds gate.mu.
func (g *gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// kind is what a fault comes to, without the call and the image: the text of an operation
// that was not tried must not change with every attempt of another one.
func kind(fault error) error {
	switch {
	case errors.Is(fault, rbd.ErrUnreachable):
		return rbd.ErrUnreachable
	case errors.Is(fault, rbd.ErrNoOSD):
		return rbd.ErrNoOSD
	}
	return rbd.ErrTimeout
}
