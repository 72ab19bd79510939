// SPDX-License-Identifier: Apache-2.0

// Package lease decides whether this replica may act, and counts its operations in flight.
// Taking, renewing and giving back the lease is not its business.
package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// The reasons why no operation may begin. The texts become events on claims and volumes.
var (
	// ErrNotLeading means that this replica was halted for longer than its lease and now
	// runs again. Another replica does what this one was about to do, or this one does,
	// if it keeps its lease after all.
	ErrNotLeading = errors.New("this replica did not renew its lease in time, so another one may lead: it makes no more changes")
	// ErrStopping means that Drain was called.
	ErrStopping = errors.New("this replica is stopping: the next one will continue")
)

// Guard lets operations begin while this replica may act, and waits for running ones. All
// parts that act under one lease share one Guard. It is safe for concurrent use.
type Guard struct {
	held    func() bool
	running sync.WaitGroup

	mu       sync.Mutex // held in Begin, so that none begins once draining is set
	draining bool
}

// New returns a Guard. held reports whether this replica surely has the lease; the Guard
// calls it often. Nil means always.
func New(held func() bool) *Guard {
	if held == nil {
		held = func() bool { return true }
	}
	return &Guard{held: held}
}

// Held reports whether this replica surely has the lease. Call it before each step that
// changes something: a halted process resumes in the middle of an operation.
func (g *Guard) Held() bool { return g.held() }

// Begin counts an operation as running and returns a function to call once when it is over;
// or ErrStopping after Drain was called, or ErrNotLeading if another replica may lead. The
// returned context ignores ctx's cancellation: half an operation is useless, so it must
// finish, within the deadlines of its calls.
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

// Drain lets no more operations begin and waits for running ones. It returns an error if
// ctx ends first. Call it before giving the lease back. The next leader can go on with the
// rest: it finds what was done, since the claim fixes all names.
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
