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
)

// FakeSilentOSDs are silent for as long as librados waits. The cluster in memory would
// report that at once.
type FakeSilentOSDs struct{ rbd.Cluster }

func (f FakeSilentOSDs) OpenPool(ctx context.Context, name string) (rbd.Pool, error) {
	pool, err := f.Cluster.OpenPool(ctx, name)
	if errors.Is(err, rbd.ErrNoOSD) {
		time.Sleep(silence)
	}
	return pool, err
}

// A user to whom OSDs are silent holds a quarter of the workers until that is known, and
// one after that. Another user of the same pool is not held up, nor taken for slow, beside
// another cluster or without one. Once the first user has caps, its operations go on.
func TestSilentUser(t *testing.T) {
	const workers = 8
	for _, beside := range []bool{false, true} {
		t.Run(fmt.Sprintf("beside another cluster %t", beside), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGated(t, workers)
				ctx, good := t.Context(), at("10.0.0.1", "a")
				silent := good
				silent.User, silent.Secret.Name = "silent", "silent"
				g.addUser("silent", rbdtest.Caps{NoOSD: true})
				if beside {
					if err := g.create(ctx, at("10.0.0.2", "a"), "before"); err != nil {
						t.Fatal(err)
					}
				}

				var ended sync.WaitGroup
				tried, busy := new(atomic.Int32), new(atomic.Int32)
				for i := range workers {
					ended.Go(func() {
						d, err := took(func() error { return g.create(ctx, silent, fmt.Sprint("silent-", i)) })
						switch {
						case errors.Is(err, rbd.ErrNoOSD) && d == silence:
							tried.Add(1)
						case errors.Is(err, access.ErrBusy) && d == 2*time.Second:
							busy.Add(1)
						default:
							t.Errorf("after %v: %v", d, err)
						}
					})
				}
				synctest.Wait()
				time.Sleep(10 * time.Second)
				var open []*access.Pool // until all have come in
				for i := range 2 * workers {
					d, err := took(func() error {
						pool, err := g.Open(ctx, good)
						if err != nil {
							return err
						}
						open = append(open, pool)
						return pool.CreateImage(ctx, fmt.Sprint("good-", i), rbd.ImageSpec{SizeBytes: 1})
					})
					if err != nil || d != 0 {
						t.Errorf("another user, after %v: %v", d, err)
					}
				}
				for _, pool := range open {
					pool.Close()
				}
				ended.Wait()
				if tried.Load() != workers/4 || busy.Load() != workers-workers/4 {
					t.Errorf("%d tried and %d were sent away, want a quarter of %d to try", tried.Load(), busy.Load(), workers)
				}

				// One tries, the other one is refused: both are told the same.
				for range 2 {
					ended.Go(func() {
						err := g.create(ctx, silent, "again")
						const want = `the caps for OSDs may be missing: client.silent, with the key in secret "ns/silent", ` +
							`needs at least mon 'profile rbd', osd 'profile rbd pool=a'`
						if !errors.Is(err, rbd.ErrTimeout) || !strings.Contains(err.Error(), want) {
							t.Errorf("got %v, want %q in it", err, want)
						}
					})
				}
				began := time.Now()
				ended.Wait()
				if d := time.Since(began); d != silence {
					t.Errorf("the attempt took %v", d)
				}
				g.addUser("silent", rbdtest.Caps{AllPools: true})
				time.Sleep(time.Second) // until the new key is read
				for i := range workers {
					if err := g.create(ctx, silent, fmt.Sprint("mended-", i)); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// A user that a monitor answers, about a pool that is not there, may still be one to whom
// OSDs are silent.
func TestMonitorsAnswerSilentUser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 4)
		ctx, silent := t.Context(), at("10.0.0.1", "a")
		silent.User, silent.Secret.Name = "silent", "silent"
		g.addUser("silent", rbdtest.Caps{NoOSD: true})
		missing := silent
		missing.Pool = "missing"
		if err := g.create(ctx, missing, "x"); !errors.Is(err, rbd.ErrPoolNotFound) {
			t.Fatalf("got %v, want %v", err, rbd.ErrPoolNotFound)
		}
		first := make(chan error)
		go func() { first <- g.create(ctx, silent, "first") }()
		synctest.Wait()
		if err := g.create(ctx, silent, "second"); !errors.Is(err, access.ErrBusy) {
			t.Errorf("got %v, want %v", err, access.ErrBusy)
		}
		if err := <-first; !errors.Is(err, rbd.ErrNoOSD) {
			t.Errorf("got %v, want %v", err, rbd.ErrNoOSD)
		}
	})
}

// Several users to whom OSDs are silent hold half of the workers at most, all together.
func TestManySilentUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const workers = 8
		g := newGated(t, workers)
		ctx, good := t.Context(), at("10.0.0.1", "a")
		if err := g.create(ctx, good, "first"); err != nil {
			t.Fatal(err)
		}
		var ended sync.WaitGroup
		tried := new(atomic.Int32)
		for i := range workers {
			silent := good
			silent.User = fmt.Sprint("silent-", i)
			silent.Secret.Name = silent.User
			g.addUser(silent.User, rbdtest.Caps{NoOSD: true})
			ended.Go(func() {
				if err := g.create(ctx, silent, silent.User); errors.Is(err, rbd.ErrNoOSD) {
					tried.Add(1)
				} else if !errors.Is(err, access.ErrBusy) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if d, err := took(func() error { return g.create(ctx, good, "second") }); err != nil || d != 0 {
			t.Errorf("another user, after %v: %v", d, err)
		}
		ended.Wait()
		if tried.Load() != workers/2 {
			t.Errorf("%d tried, want half of %d", tried.Load(), workers)
		}
	})
}
