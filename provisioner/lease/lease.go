// SPDX-License-Identifier: Apache-2.0

// Package lease says whether this replica may act, and knows what it has under way.
// How the lease is taken, renewed and given back is not its business.
package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Why nothing begins. The texts become events on claims and volumes.
var (
	// ErrNotLeading is about a replica that was halted for longer than its lease, and
	// goes on. What it was about to do, another one does; or this one again, if it
	// keeps its lease after all.
	ErrNotLeading = errors.New("this replica did not renew its lease in time, and another one may lead: it does nothing more")
	// ErrStopping is about a replica that Drain was called for.
	ErrStopping = errors.New("this replica is stopping: the next one goes on")
)

// Guard lets operations begin while this replica may act, and waits for those that
// run. One Guard serves all that act under one lease. It is safe for concurrent use.
type Guard struct {
	held func() bool

	// mu guards draining, and that no operation begins once it is set.
	mu       sync.Mutex
	draining bool
	running  sync.WaitGroup
}

// New returns a Guard. held reports whether this replica surely has the lease; it is
// asked often. Nil means always.
func New(held func() bool) *Guard {
	if held == nil {
		held = func() bool { return true }
	}
	return &Guard{held: held}
}

// Held reports whether this replica surely has the lease. Ask before each step that
// changes something: a process that was halted goes on in the middle of an operation.
func (g *Guard) Held() bool { return g.held() }

// Begin counts an operation in and returns what counts it out again, to be called
// once. It returns ErrStopping once Drain was called, and ErrNotLeading when another
// replica may lead.
//
// It also cuts ctx off from cancellation: what has begun is finished, within the
// deadlines of its single calls, since half of it is of no use to anybody.
func (g *Guard) Begin(ctx context.Context) (context.Context, func(), error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.draining {
		return ctx, nil, ErrStopping
	}
	if !g.held() {
		return ctx, nil, ErrNotLeading
	}
	g.running.Add(1)
	return context.WithoutCancel(ctx), g.running.Done, nil
}

// Drain lets no operation begin any more and waits for those that run, or until ctx
// ends, which is an error. Call it before the lease is given back. An operation that
// Drain did not wait for can be taken up by the next leader: names are fixed by the
// claim, so it finds what was done.
func (g *Guard) Drain(ctx context.Context) error {
	g.mu.Lock()
	g.draining = true
	g.mu.Unlock()

	done := make(chan struct{})
	go func() {
		g.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for running operations: %w", ctx.Err())
	}
}
