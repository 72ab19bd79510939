// SPDX-License-Identifier: Apache-2.0

package lease_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/lease"
)

func TestBegin(t *testing.T) {
	drained := func(t *testing.T, held func() bool) *lease.Guard {
		g := lease.New(held)
		if err := g.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		return g
	}
	yes, no := func() bool { return true }, func() bool { return false }
	for _, test := range []struct {
		name     string
		guard    *lease.Guard
		wantHeld bool
		want     error
	}{
		{"this replica leads", lease.New(yes), true, nil},
		{"there is no lease", lease.New(nil), true, nil},
		{"another replica may lead", lease.New(no), false, lease.ErrNotLeading},
		{"this replica is stopping", drained(t, yes), true, lease.ErrStopping},
		{"it is stopping, and another one may lead", drained(t, no), false, lease.ErrStopping},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.guard.Held(); got != test.wantHeld {
				t.Errorf("Held: got %v, want %v", got, test.wantHeld)
			}
			_, end, err := test.guard.Begin(t.Context())
			if !errors.Is(err, test.want) || (end == nil) == (err == nil) {
				t.Errorf("Begin: got %v, want %v", err, test.want)
			}
			if end != nil {
				end()
			}
		})
	}
}

// TestLeaseIsLost: each Begin asks for the lease, and what has begun may outlast it.
func TestLeaseIsLost(t *testing.T) {
	held := true
	g := lease.New(func() bool { return held })
	_, end, err := g.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held = false
	if g.Held() {
		t.Error("it is held still")
	}
	if _, _, err := g.Begin(t.Context()); !errors.Is(err, lease.ErrNotLeading) {
		t.Errorf("got %v, want %v", err, lease.ErrNotLeading)
	}
	held = true
	_, again, err := g.Begin(t.Context())
	if err != nil {
		t.Fatalf("a replica that keeps its lease after all: %v", err)
	}
	end()
	again()
	if err := g.Drain(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestContext: what has begun is not cancelled, and keeps the values of its context.
func TestContext(t *testing.T) {
	type key struct{}
	ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
	begun, end, err := lease.New(nil).Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	cancel()
	if begun.Err() != nil || begun.Value(key{}) != "value" {
		t.Errorf("got the error %v and the value %v", begun.Err(), begun.Value(key{}))
	}
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := lease.New(nil)
		var ends []func()
		for range 2 {
			_, end, err := g.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ends = append(ends, end)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begin := time.Now()
		if err := g.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
		if waited := time.Since(begin); waited != 5*time.Second {
			t.Errorf("it waited for %v", waited)
		}

		drained := make(chan error, 1)
		go func() { drained <- g.Drain(t.Context()) }()
		for _, end := range ends {
			synctest.Wait()
			select {
			case err := <-drained:
				t.Fatalf("Drain did not wait, but returned %v", err)
			default:
			}
			end()
		}
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if err := g.Drain(t.Context()); err != nil {
			t.Errorf("once more: %v", err)
		}
	})
}
