// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Before the gate knows that a cluster is down, the cluster gets half of the workers. The
// others wait for two seconds only.
func TestHalfOfTheWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const workers = 10
		g := newGated(t, workers)
		ctx := t.Context()
		for _, host := range []string{"10.0.0.1", "10.0.0.2"} {
			if err := g.create(ctx, at(host, "a"), "before"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		g.connector.silent.Store(true)
		var ended sync.WaitGroup
		tried, busy := new(atomic.Int32), new(atomic.Int32)
		for i := range workers {
			ended.Go(func() {
				d, err := took(func() error { return g.create(ctx, at("10.0.0.1", "a"), fmt.Sprint(i)) })
				switch {
				case errors.Is(err, rbd.ErrUnreachable) && d == silence:
					tried.Add(1)
				case errors.Is(err, access.ErrBusy) && d == 2*time.Second:
					busy.Add(1)
					if !strings.Contains(err.Error(), "will retry; if this does not end") {
						t.Error(err)
					}
				default:
					t.Errorf("after %v: %v", d, err)
				}
			})
		}
		synctest.Wait()
		// A cluster that answers has no limit.
		for i := range 3 * workers {
			ended.Go(func() {
				if d, err := took(func() error { return g.create(ctx, at("10.0.0.2", "a"), fmt.Sprint(i)) }); err != nil || d != 0 {
					t.Errorf("after %v: %v", d, err)
				}
			})
		}
		ended.Wait()
		if tried.Load() != workers/2 || busy.Load() != workers/2 {
			t.Errorf("%d tried and %d were sent away, want %d each", tried.Load(), busy.Load(), workers/2)
		}
	})
}

// The only cluster gets all the workers, however slow it is. Work on volumes does not take
// the workers of claims.
func TestPlacesOfOneCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const workers = 10
		g := newGated(t, workers)
		ctx, l := t.Context(), at("10.0.0.1", "a")
		open := func(open func(context.Context, volume.Location) (*access.Pool, error)) {
			t.Helper()
			pool, err := open(ctx, l)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
		}
		for range 2 * workers {
			open(g.OpenForVolume)
		}
		if err := g.create(ctx, at("10.0.0.2", "a"), "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := g.OpenForVolume(ctx, l); !errors.Is(err, access.ErrBusy) {
			t.Errorf("got %v, want %v", err, access.ErrBusy)
		}
		open(g.Open)
	})
}

// An operation that waits for a place gets it as soon as there is one. When the cluster
// turns out to be silent, one of the waiting operations tries.
func TestWaitForAPlace(t *testing.T) {
	for _, test := range []struct {
		name string
		// end ends the wait of the operation that holds the place.
		end     func(context.Context, *gated, *access.Pool)
		refused int32 // of two that wait
	}{
		{"it is given back", func(_ context.Context, _ *gated, p *access.Pool) { p.Close() }, 0},
		{"an answer comes", func(ctx context.Context, _ *gated, p *access.Pool) { _, _ = p.Image(ctx, "x") }, 0},
		{"no answer comes", func(ctx context.Context, g *gated, p *access.Pool) {
			g.one.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Err: rbd.ErrTimeout})
			_, _ = p.Image(ctx, "x")
		}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGated(t, 2)
				ctx, l := t.Context(), at("10.0.0.1", "a")
				if err := g.create(ctx, at("10.0.0.2", "a"), "x"); err != nil {
					t.Fatal(err)
				}
				first, err := g.Open(ctx, l)
				if err != nil {
					t.Fatal(err)
				}
				refused := new(atomic.Int32)
				var ended sync.WaitGroup
				for range 2 {
					ended.Go(func() {
						pool, err := g.Open(ctx, l)
						switch {
						case errors.Is(err, rbd.ErrTimeout):
							refused.Add(1)
						case err != nil:
							t.Error(err)
						default:
							time.Sleep(time.Second)
							pool.Close()
						}
					})
				}
				synctest.Wait()
				test.end(ctx, g, first)
				ended.Wait()
				if got := refused.Load(); got != test.refused {
					t.Errorf("%d were refused, want %d", got, test.refused)
				}
			})
		})
	}
}
