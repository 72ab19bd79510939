// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// tenure knows whether this replica surely leads, even where the elector can't have
// noticed yet that it does not: in a process that was halted, as by SIGSTOP, a debugger
// or a machine without time for it, and goes on.
//
// Other replicas count a lease's duration from when they see it renewed, which is after
// the request was sent: so tenure counts from there. It ends with the renew deadline,
// so that calls to Ceph that began before have the rest of the lease to end in.
//
// time.Now has a monotonic reading. On Linux that is CLOCK_MONOTONIC, which goes on
// while a process is stopped but not while the machine is suspended: after that, the
// elector has to notice.
type tenure struct {
	length time.Duration

	mu sync.Mutex // guards renewed
	// renewed is when the last successful renewal was sent; zero if this replica does
	// not lead.
	renewed time.Time
}

func newTenure(length time.Duration) *tenure { return &tenure{length: length} }

func (t *tenure) leading() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.renewed.IsZero() && time.Since(t.renewed) < t.length
}

func (t *tenure) set(renewed time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.renewed = renewed
}

// led reports whether this replica has led, and may still lead.
func (t *tenure) led() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.renewed.IsZero()
}

// watchedLock is a lock that keeps a tenure up to date.
type watchedLock struct {
	resourcelock.Interface
	tenure *tenure
	// Get calls lost when another replica turns out to have the lease; the elector
	// would keep trying until its renew deadline.
	lost func()
}

// Get implements resourcelock.Interface.
func (l *watchedLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err == nil && record.HolderIdentity != l.Identity() && l.tenure.led() {
		l.tenure.set(time.Time{})
		l.lost()
	}
	return record, raw, err
}

// Create implements resourcelock.Interface.
func (l *watchedLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	sent := time.Now()
	err := l.Interface.Create(ctx, record)
	if err == nil {
		l.tenure.set(sent)
	}
	return err
}

// Update implements resourcelock.Interface.
func (l *watchedLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	if record.HolderIdentity != l.Identity() {
		// This gives the lease back, which counts from when the request is sent.
		l.tenure.set(time.Time{})
		return l.Interface.Update(ctx, record)
	}
	sent := time.Now()
	err := l.Interface.Update(ctx, record)
	if err == nil {
		l.tenure.set(sent)
	}
	return err
}
