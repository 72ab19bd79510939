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

// TestFence makes every call that a pool has for a replica that leads no more: none is
// let through but those that surely change nothing.
func TestFence(t *testing.T) {
	reads := []string{
		rbd.OpImage, rbd.OpWritten, rbd.OpTrashed, rbd.OpHasClone, rbd.OpSnapshots, rbd.OpCloneDepth, rbd.OpNotes,
	}
	g := newGated(t, 0)
	pool := g.mustOpen(t)
	g.leaseLost.Store(true)
	var refused []string
	for method := range reflect.TypeFor[rbd.Pool]().Methods() {
		if method.Name == "Close" {
			continue // which is no call
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
			refused = append(refused, method.Name)
		}
	}
	if len(refused) == 0 || len(g.observed) != len(reads) {
		t.Errorf("%d calls were refused, and %q made", len(refused), g.observed)
	}
	g.leaseLost.Store(false)
	if err := pool.CreateImage(t.Context(), "x", rbd.ImageSpec{SizeBytes: 1}); err != nil {
		t.Errorf("with the lease: %v", err)
	}
}

// Nobody has asked the cluster when a call is refused for want of the lease: a route
// that is closed stays closed.
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
