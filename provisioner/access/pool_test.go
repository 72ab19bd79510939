// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// mustOpen opens the pool "a" of the first cluster.
func (g *gated) mustOpen(t *testing.T) *access.Pool {
	t.Helper()
	pool, err := g.Open(t.Context(), at("10.0.0.1", "a"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// TestFence makes every call of a pool in a replica that no longer leads: only those that
// surely change nothing go through.
func TestFence(t *testing.T) {
	reads := []string{
		rbd.OpImage, rbd.OpWritten, rbd.OpTrashed, rbd.OpHasClone, rbd.OpSnapshots, rbd.OpCloneDepth, rbd.OpNotes,
	}
	g := newGated(t, 0)
	pool := g.mustOpen(t)
	g.leaseLost.Store(true)
	var made, refused int
	for method := range reflect.TypeFor[rbd.Pool]().Methods() {
		if method.Name == "Close" {
			continue // Close is no call to Ceph.
		}
		args := []reflect.Value{reflect.ValueOf(t.Context())}
		for i := 1; i < method.Type.NumIn() && (!method.Type.IsVariadic() || i < method.Type.NumIn()-1); i++ {
			args = append(args, reflect.Zero(method.Type.In(i)))
		}
		results := reflect.ValueOf(pool).MethodByName(method.Name).Call(args)
		err, _ := results[len(results)-1].Interface().(error)
		if want := !slices.Contains(reads, method.Name); errors.Is(err, lease.ErrNotLeading) != want {
			t.Errorf("%s: got %v, want a refusal: %v", method.Name, err, want)
		} else if want {
			refused++
		} else {
			made++
		}
	}
	if refused == 0 || made != len(reads) {
		t.Errorf("%d calls were refused, and %d made", refused, made)
	}
	g.leaseLost.Store(false)
	if err := pool.CreateImage(t.Context(), "x", rbd.ImageSpec{SizeBytes: 1}); err != nil {
		t.Errorf("with the lease: %v", err)
	}
}

// A call that is refused for want of the lease does not reach the cluster, so it is no
// answer: a closed route stays closed.
func TestRefusalIsNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 100)
		ctx, l := t.Context(), at("10.0.0.1", "a")
		g.one.Fake(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, Err: rbd.ErrTimeout})
		if err := g.create(ctx, l, "x"); !errors.Is(err, rbd.ErrTimeout) {
			t.Fatalf("got %v", err)
		}
		probe := g.mustOpen(t)
		for _, lost := range []bool{true, false} {
			g.leaseLost.Store(lost)
			if err := probe.CreateImage(ctx, "x", rbd.ImageSpec{SizeBytes: 1}); errors.Is(err, lease.ErrNotLeading) != lost {
				t.Fatalf("got %v", err)
			}
			other, err := g.Open(ctx, l)
			if errors.Is(err, rbd.ErrTimeout) != lost {
				t.Errorf("with the lease lost %v: got %v", lost, err)
			}
			if err == nil {
				other.Close()
			}
		}
	})
}

// TestObserve checks that calls are observed with their time and their error.
func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGated(t, 0)
		pool := g.mustOpen(t)
		g.one.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Before: func() { time.Sleep(time.Second) }, Err: rbd.ErrTimeout})
		_, _ = pool.Image(t.Context(), "x")
		_ = pool.CreateImage(t.Context(), "x", rbd.ImageSpec{SizeBytes: 1})
		if diff := cmp.Diff([]string{"Image 1s true", "CreateImage 0s false"}, g.observed); diff != "" {
			t.Errorf("what was observed (-want +got):\n%s", diff)
		}
	})
}

// TestChanged checks after which calls an image may have changed.
func TestChanged(t *testing.T) {
	create := func(g *gated, p *access.Pool) error {
		return p.CreateImage(g.t.Context(), "new", rbd.ImageSpec{SizeBytes: 1})
	}
	fails := func(call rbdtest.Call, err error, work func(*gated, *access.Pool) error) func(*gated, *access.Pool) error {
		return func(g *gated, p *access.Pool) error {
			g.one.Fake(rbdtest.FakeFault{Call: call, Err: err})
			if got := work(g, p); !errors.Is(got, err) {
				g.t.Errorf("got %v, want %v", got, err)
			}
			return nil
		}
	}
	clone := func(g *gated, p *access.Pool) error {
		return p.CloneImage(g.t.Context(), "new", rbd.CloneSpec{Source: "old", Snapshot: "s"})
	}
	mark := func(g *gated, p *access.Pool) error {
		return p.SetMetadata(g.t.Context(), "old", map[string]string{"a": "b"})
	}
	for _, test := range []struct {
		name string
		work func(*gated, *access.Pool) error
		want bool
	}{
		{"nothing is asked", func(*gated, *access.Pool) error { return nil }, false},
		{"an image is looked at", func(g *gated, p *access.Pool) error {
			_, err := p.Image(g.t.Context(), "old")
			return err
		}, false},
		{"notes are written and cleared", func(g *gated, p *access.Pool) error {
			return errors.Join(p.SetNotes(g.t.Context(), "o", map[string][]byte{"k": nil}), p.RemoveNotes(g.t.Context(), "o", "k"))
		}, false},
		{"a snapshot is made and removed", func(g *gated, p *access.Pool) error {
			i, err := p.Image(g.t.Context(), "old")
			return errors.Join(err, p.SnapshotImage(g.t.Context(), i.ID, "s"), p.RemoveSnapshot(g.t.Context(), i.ID, "s"))
		}, false},
		{"an image is made", create, true},
		{"an image is there", func(g *gated, p *access.Pool) error {
			if err := p.CreateImage(g.t.Context(), "old", rbd.ImageSpec{SizeBytes: 1}); !errors.Is(err, rbd.ErrImageExists) {
				return errors.New("it was made")
			}
			return nil
		}, true},
		{"the answer is lost", fails(rbdtest.CallCreateImage, rbd.ErrTimeout, create), true},
		{"the pool is full", fails(rbdtest.CallCreateImage, rbd.ErrPoolFull, create), true},
		{"it is denied", fails(rbdtest.CallCreateImage, rbd.ErrPermissionDenied, create), false},
		{"there is no data pool", fails(rbdtest.CallCreateImage, rbd.ErrPoolNotFound, create), false},
		{"the data pool is none", fails(rbdtest.CallCreateImage, rbd.ErrNotSupported, create), false},
		{"a clone is denied", fails(rbdtest.CallCloneImage, rbd.ErrPermissionDenied, clone), false},
		{"a mark is denied", fails(rbdtest.CallSetMetadata, rbd.ErrPermissionDenied, mark), true},
		{"it is denied after another call", func(g *gated, p *access.Pool) error {
			return errors.Join(mark(g, p), fails(rbdtest.CallCreateImage, rbd.ErrPermissionDenied, create)(g, p))
		}, true},
		{"this replica leads no more", func(g *gated, p *access.Pool) error {
			g.leaseLost.Store(true)
			if err := create(g, p); !errors.Is(err, lease.ErrNotLeading) {
				return errors.New("it was made")
			}
			return nil
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGated(t, 0)
			if err := g.create(t.Context(), at("10.0.0.1", "a"), "old"); err != nil {
				t.Fatal(err)
			}
			pool := g.mustOpen(t)
			if err := test.work(g, pool); err != nil {
				t.Fatal(err)
			}
			if pool.Changed() != test.want {
				t.Errorf("got %v, want %v", pool.Changed(), test.want)
			}
		})
	}
}
