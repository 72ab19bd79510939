// SPDX-License-Identifier: Apache-2.0

package work_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/work"
)

// run runs a queue in a bubble until the test ends.
func run[T comparable](t *testing.T, q *work.Queue[T], workers int, do func(context.Context, T) error) {
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { q.Run(ctx, workers, do) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
}

// TestRetries checks when an item comes again, by the time since it was added.
func TestRetries(t *testing.T) {
	failed := errors.New("failed")
	for name, test := range map[string]struct {
		results []error // of each attempt; the last one is nil
		want    []time.Duration
	}{
		"done at once": {[]error{nil}, []time.Duration{0}},
		"fails": {
			[]error{failed, failed, failed, nil},
			[]time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second},
		},
		"comes later, which is no failure": {
			[]error{failed, work.Later(time.Minute), failed, nil},
			[]time.Duration{0, time.Second, 61 * time.Second, 62 * time.Second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q, start := work.NewQueue[string](), time.Now()
				var got []time.Duration
				run(t, q, 1, func(context.Context, string) error {
					got = append(got, time.Since(start))
					return test.results[len(got)-1]
				})
				q.Add("a")
				time.Sleep(time.Hour) // of the bubble's clock
				synctest.Wait()
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("attempts (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// TestRetryCap lets an item fail for a day.
func TestRetryCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := work.NewQueue[string]()
		var last, longest time.Duration
		start := time.Now()
		run(t, q, 1, func(context.Context, string) error {
			now := time.Since(start)
			last, longest = now, max(longest, now-last)
			return errors.New("failed")
		})
		q.Add("a")
		time.Sleep(24 * time.Hour) // of the bubble's clock
		synctest.Wait()
		if longest != work.RetryCap {
			t.Errorf("the longest wait was %s, want %s", longest, work.RetryCap)
		}
	})
}

// TestItemsAreNotDoubled adds an item while it waits and while it is worked on, and
// another one that a second worker takes meanwhile.
func TestItemsAreNotDoubled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := work.NewQueue[string]()
		var mu sync.Mutex // guards counts
		counts := map[string]int{}
		run(t, q, 2, func(_ context.Context, item string) error {
			mu.Lock()
			counts[item]++
			mu.Unlock()
			time.Sleep(time.Minute) // of the bubble's clock
			return nil
		})
		q.AddAfter("a", time.Second)
		q.AddAfter("a", 2*time.Second)
		q.Add("b")
		time.Sleep(10 * time.Second) // both are worked on
		synctest.Wait()
		if diff := cmp.Diff(map[string]int{"a": 1, "b": 1}, counts); diff != "" {
			t.Errorf("at first (-want +got):\n%s", diff)
		}
		q.Add("a")
		q.Add("a")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if diff := cmp.Diff(map[string]int{"a": 2, "b": 1}, counts); diff != "" {
			t.Errorf("at last (-want +got):\n%s", diff)
		}
	})
}

// TestStop ends the context while one item is worked on and another one waits.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := work.NewQueue[string]()
		ctx, cancel := context.WithCancel(t.Context())
		var done []string
		q.Add("a")
		q.Add("b")
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		q.Run(ctx, 1, func(_ context.Context, item string) error {
			time.Sleep(time.Minute) // of the bubble's clock
			done = append(done, item)
			return errors.New("failed")
		})
		if took := time.Since(start); took != time.Minute {
			t.Errorf("it took %s to stop, want 1m0s", took)
		}
		if diff := cmp.Diff([]string{"a"}, done); diff != "" {
			t.Errorf("done (-want +got):\n%s", diff)
		}
	})
}

// TestNextDelay checks that the delays double, from one second up to five minutes.
func TestNextDelay(t *testing.T) {
	var delay time.Duration
	for _, seconds := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		want := time.Duration(seconds) * time.Second
		if delay = work.NextDelay(delay); delay != want {
			t.Errorf("got %s, want %s", delay, want)
		}
	}
}
