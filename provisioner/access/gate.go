// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// ErrBusy says that a cluster is slow, and that as many operations as allowed already
// wait for it. Nothing was changed.
var ErrBusy = errors.New("the Ceph cluster is slow to answer, and others wait for it already")

const (
	// lately is how long the gate remembers that a cluster was used or did not answer.
	lately = 10 * time.Minute
	// placeWait bounds the wait for a place: the waiting worker could serve another
	// cluster.
	placeWait = 2 * time.Second
	// A cluster is quick, and needs no limit, if it answered within freshTime and no
	// operation has waited for an answer for slowTime.
	freshTime = time.Second
	slowTime  = 5 * time.Second
)

// gate keeps a cluster that does not answer from holding all the workers, by two means:
//
//   - A circuit breaker: once a call waited in vain and no other call got an answer
//     meanwhile, one operation at a time may go where that call went, and tries; others
//     fail at once. The first answer ends this. There is no timer: claims and volumes
//     are retried anyway.
//   - A limiter, for the time before that is known and while a cluster answers in part:
//     the cluster holds half of the workers at most. The limiter applies only if another
//     cluster is in use, and not while all answers come quickly.
//
// The circuit breaker goes by route, since pools of one cluster fail one by one, and
// since a wrong key can look like silent monitors. The limiter goes by monitors. It
// counts claims and volumes apart, as they have workers of their own: removing large
// images takes long without any fault.
type gate struct {
	// half is half of the workers for each use; 0 for no limit.
	half int

	mu       sync.Mutex // guards all that follows, and what is in it
	clusters map[string]*cluster
	routes   map[volume.Route]*routeState
	// probes counts the operations inside that find out whether their route answers
	// again.
	probes int
	// changed is closed, and replaced, when a waiting operation may go on.
	changed chan struct{}
}

// use is what a pool is opened for.
type use int

const (
	forClaim use = iota
	forVolume
)

type routeState struct {
	used     time.Time
	answered time.Time
	// fault is why the circuit breaker is open: ErrUnreachable or ErrTimeout; nil if it
	// is not.
	fault   error
	probing bool
}

type cluster struct {
	used     time.Time
	answered time.Time
	inside   [2]map[*visit]struct{} // by use
}

// visit is an operation that the gate let in.
type visit struct {
	gate    *gate
	cluster *cluster
	route   *routeState
	use     use
	probe   bool
	// since is when the operation came in, or last got an answer.
	since time.Time
	// removing says that a call may take long without any fault.
	removing bool
	left     bool
}

func newGate(workers int) *gate {
	g := &gate{clusters: map[string]*cluster{}, routes: map[volume.Route]*routeState{}, changed: make(chan struct{})}
	if workers > 0 {
		g.half = max(1, workers/2)
	}
	return g
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
			return nil, fmt.Errorf("monitors %q: %w", l.Route().Monitors(), ErrBusy)
		}
	}
}

// admit lets an operation in, refuses it, or returns a channel to wait for.
func (g *gate) admit(l volume.Location, u use) (*visit, <-chan struct{}, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	g.forget(now)
	r := l.Route()
	state := g.routes[r]
	if state == nil {
		state = &routeState{}
		g.routes[r] = state
	}
	c := g.clusters[r.Monitors()]
	if c == nil {
		c = &cluster{inside: [2]map[*visit]struct{}{{}, {}}}
		g.clusters[r.Monitors()] = c
	}
	state.used, c.used = now, now

	probe := state.fault != nil
	switch {
	case probe && (state.probing || g.half > 0 && g.probes >= g.half):
		return nil, nil, &silence{l, state.fault}
	case !probe && g.half > 0 && len(g.clusters) > 1 && len(c.inside[u]) >= g.half && !c.quick(u, now):
		return nil, g.changed, nil
	}
	v := &visit{gate: g, cluster: c, route: state, use: u, probe: probe, since: now}
	c.inside[u][v] = struct{}{}
	if probe {
		state.probing = true
		g.probes++
	}
	return v, nil, nil
}

// forget drops the clusters and routes that were not used lately.
func (g *gate) forget(now time.Time) {
	for key, c := range g.clusters {
		if now.Sub(c.used) > lately && len(c.inside[forClaim])+len(c.inside[forVolume]) == 0 {
			delete(g.clusters, key)
		}
	}
	for key, r := range g.routes {
		// An operation still inside keeps the state it came with, which no longer has any
		// effect.
		if now.Sub(r.used) > lately && !r.probing {
			delete(g.routes, key)
		}
	}
}

func (c *cluster) quick(u use, now time.Time) bool {
	if now.Sub(c.answered) > freshTime {
		return false
	}
	for v := range c.inside[u] {
		if !v.removing && now.Sub(v.since) > slowTime {
			return false
		}
	}
	return true
}

// saw records how a call ended; began is when it started.
func (v *visit) saw(began time.Time, err error) {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	switch {
	case errors.Is(err, rbd.ErrImageBusy), errors.Is(err, rbd.ErrConnectionLost):
		// These say nothing about the next attempt, which is on another image, or over a
		// new connection.
	case errors.Is(err, rbd.ErrUnreachable), errors.Is(err, rbd.ErrTimeout):
		// If other calls got an answer meanwhile, something other than the route is slow:
		// one image, one group of objects.
		if v.removing || v.route.answered.After(began) {
			return
		}
		v.route.fault = rbd.ErrTimeout
		if errors.Is(err, rbd.ErrUnreachable) {
			v.route.fault = rbd.ErrUnreachable
		}
		v.gate.wake()
	default:
		v.since = time.Now()
		v.cluster.answered, v.route.answered, v.route.fault = v.since, v.since, nil
		v.gate.wake()
	}
}

func (v *visit) setRemoving(removing bool) {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	v.removing = removing
}

// leave frees the place. Calling it twice is harmless.
func (v *visit) leave() {
	v.gate.mu.Lock()
	defer v.gate.mu.Unlock()
	if v.left {
		return
	}
	v.left = true
	delete(v.cluster.inside[v.use], v)
	if v.probe {
		v.route.probing = false
		v.gate.probes--
	}
	v.gate.wake()
}

// wake lets waiting operations look again. The caller holds gate.mu.
func (g *gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// silence is the error of an operation that was not tried, because the route gave no
// answer last time and another operation waits for one now. Its text does not depend on
// the fault.
type silence struct {
	location volume.Location
	fault    error
}

func (s *silence) Error() string {
	return fmt.Sprintf("pool %q, monitors %q, user %q: no answer lately, so that one attempt at a time is made, and this one waits its turn",
		s.location.Pool, s.location.Route().Monitors(), s.location.User)
}

func (s *silence) Unwrap() error { return s.fault }
