// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync/atomic"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// tenure knows whether this replica surely leads, even in a process that was halted, as by
// SIGSTOP, a debugger or a busy machine, where the elector can't have noticed yet.
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
	// renewed is when the last successful renewal was sent; nil if this replica does not lead.
	renewed atomic.Pointer[time.Time]
}

func (t *tenure) leading() bool {
	renewed := t.renewed.Load()
	return renewed != nil && time.Since(*renewed) < t.length
}

// watchedLock is a lock that keeps a tenure up to date.
type watchedLock struct {
	resourcelock.Interface
	tenure *tenure
	// Get calls lost when another replica turns out to have the lease; the elector
	// would keep trying until its renew deadline.
	lost func()
}

func (l *watchedLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err == nil && record.HolderIdentity != l.Identity() && l.tenure.renewed.Swap(nil) != nil {
		l.lost()
	}
	return record, raw, err
}

func (l *watchedLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.write(ctx, record, l.Interface.Create)
}

func (l *watchedLock) Update(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.write(ctx, record, l.Interface.Update)
}

func (l *watchedLock) write(ctx context.Context, record resourcelock.LeaderElectionRecord,
	write func(context.Context, resourcelock.LeaderElectionRecord) error,
) error {
	sent := time.Now()
	if record.HolderIdentity != l.Identity() {
		// This gives the lease back, which counts from when the request is sent.
		l.tenure.renewed.Store(nil)
		return write(ctx, record)
	}
	err := write(ctx, record)
	if err == nil {
		l.tenure.renewed.Store(&sent)
	}
	return err
}
