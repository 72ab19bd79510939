// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// FakeLock answers as a test wants it: after a while, or with an error.
type FakeLock struct {
	resourcelock.Interface
	holder string
	delay  time.Duration
	err    error
}

func (l *FakeLock) Identity() string { return "us" }

func (l *FakeLock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	return &resourcelock.LeaderElectionRecord{HolderIdentity: l.holder}, nil, l.err
}

func (l *FakeLock) Create(context.Context, resourcelock.LeaderElectionRecord) error {
	time.Sleep(l.delay)
	return l.err
}

func (l *FakeLock) Update(context.Context, resourcelock.LeaderElectionRecord) error {
	time.Sleep(l.delay)
	return l.err
}

func TestTenure(t *testing.T) {
	ours := resourcelock.LeaderElectionRecord{HolderIdentity: "us"}
	refused := errors.New("refused")
	for _, test := range []struct {
		name string
		run  func(context.Context, *FakeLock, *watchedLock) error
		// for how long it leads from then on
		want time.Duration
		lost bool
	}{
		{"it never led", func(context.Context, *FakeLock, *watchedLock) error { return nil }, 0, false},
		{"it could not take the lease", func(ctx context.Context, f *FakeLock, l *watchedLock) error {
			f.err = refused
			return l.Create(ctx, ours)
		}, 0, false},
		{"it made the lease", func(ctx context.Context, _ *FakeLock, l *watchedLock) error {
			return l.Create(ctx, ours)
		}, 10 * time.Second, false},
		{"it counts from when the request was sent", func(ctx context.Context, f *FakeLock, l *watchedLock) error {
			f.delay = 3 * time.Second
			return l.Update(ctx, ours)
		}, 7 * time.Second, false},
		{"a renewal that failed does not count", func(ctx context.Context, f *FakeLock, l *watchedLock) error {
			err := l.Update(ctx, ours)
			time.Sleep(4 * time.Second)
			f.err = refused
			return errors.Join(err, l.Update(ctx, ours))
		}, 6 * time.Second, false},
		{"it was halted", func(ctx context.Context, _ *FakeLock, l *watchedLock) error {
			err := l.Update(ctx, ours)
			time.Sleep(time.Hour)
			return err
		}, 0, false},
		{"it was halted, and nobody took the lease", func(ctx context.Context, _ *FakeLock, l *watchedLock) error {
			err := l.Update(ctx, ours)
			time.Sleep(time.Hour)
			return errors.Join(err, l.Update(ctx, ours))
		}, 10 * time.Second, false},
		{"another has the lease", func(ctx context.Context, f *FakeLock, l *watchedLock) error {
			err := l.Update(ctx, ours)
			f.holder = "another"
			_, _, getErr := l.Get(ctx)
			return errors.Join(err, getErr)
		}, 0, true},
		{"another has it, and this one never led", func(ctx context.Context, f *FakeLock, l *watchedLock) error {
			f.holder = "another"
			_, _, err := l.Get(ctx)
			return err
		}, 0, false},
		{"it gave the lease back", func(ctx context.Context, f *FakeLock, l *watchedLock) error {
			err := l.Update(ctx, ours)
			f.err = refused // who knows what came of it
			return errors.Join(err, l.Update(ctx, resourcelock.LeaderElectionRecord{}))
		}, 0, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake := &FakeLock{holder: "us"}
				lost := false
				lock := &watchedLock{Interface: fake, tenure: &tenure{length: 10 * time.Second}, lost: func() { lost = true }}
				if err := test.run(t.Context(), fake, lock); err != nil && !errors.Is(err, refused) {
					t.Fatal(err)
				}
				begin := time.Now()
				for lock.tenure.leading() {
					time.Sleep(100 * time.Millisecond)
				}
				if got := time.Since(begin); got != test.want || lost != test.lost {
					t.Errorf("it led for %v, lost %v, want %v, %v", got, lost, test.want, test.lost)
				}
			})
		})
	}
}
