// SPDX-License-Identifier: Apache-2.0

package rbdtest_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestConformance runs the suite on the cluster in memory.
func TestConformance(t *testing.T) {
	conformance(t, false, func(c rbd.Connector) rbd.Connector { return c })
}

// TestConformanceAround runs the suite on pools whose calls go through rbd.Around: it must
// pass on all arguments and results. OSDs are as those of Ceph 18.
func TestConformanceAround(t *testing.T) {
	conformance(t, true, func(c rbd.Connector) rbd.Connector { return aroundConnector{c} })
}

type aroundConnector struct{ rbd.Connector }

func (c aroundConnector) Connect(ctx context.Context, creds rbd.Credentials) (rbd.Cluster, error) {
	cluster, err := c.Connector.Connect(ctx, creds)
	if err != nil {
		return nil, err
	}
	return aroundCluster{cluster}, nil
}

type aroundCluster struct{ rbd.Cluster }

func (c aroundCluster) OpenPool(ctx context.Context, name string) (rbd.Pool, error) {
	pool, err := c.Cluster.OpenPool(ctx, name)
	if err != nil {
		return nil, err
	}
	return rbd.Around(pool, func(ctx context.Context, _ rbd.Op, call func(context.Context) error) error {
		return call(ctx)
	}), nil
}

// conformance runs the suite on a cluster in memory, through the Connector that wrap
// returns. silent says whether OSDs do not answer a user without caps for them.
func conformance(t *testing.T, silent bool, wrap func(rbd.Connector) rbd.Connector) {
	c := rbdtest.NewCluster("10.0.0.1:6789", "10.0.0.2:6789")
	c.AddPool("images")
	c.AddPool("other")
	c.AddErasurePool("erasure", true)
	c.AddErasurePool("erasure-fixed", false)
	everything := rbdtest.Caps{AllPools: true}
	var watchers atomic.Int64
	rbdtest.Conformance(t, rbdtest.Harness{
		NewConnector: func(*testing.T) rbd.Connector {
			return wrap(rbdtest.NewConnector(rbdtest.NewCluster("10.9.9.9"), c))
		},
		Admin:       c.AddUser("admin", everything),
		Restricted:  c.AddUser("restricted", rbdtest.Caps{Pools: []string{"images"}}),
		NoCaps:      c.AddUser("no-caps", rbdtest.Caps{NoOSD: silent}),
		Silent:      silent,
		NoMonitor:   c.AddUser("no-monitor", rbdtest.Caps{AllPools: true, NoMonitor: true}),
		DeafMonitor: c.AddUser("deaf-monitor", rbdtest.Caps{AllPools: true, DeafMonitor: true}),
		Pool:        "images",
		OtherPool:   "other",
		ErasurePool: "erasure",
		NoDataPool:  "erasure-fixed",
		DeadMonitor: "10.0.0.3:6789",
		AddPool:     func(_ *testing.T, pool string) { c.AddPool(pool) },
		RemovePool:  func(_ *testing.T, pool string) { c.RemovePool(pool) },
		AddUser:     func(_ *testing.T, user string) rbd.Credentials { return c.AddUser(user, everything) },
		SetFull:     func(_ *testing.T, pool string, full bool) { c.SetFull(pool, full) },
		Watch: func(_ *testing.T, pool, image string) (string, func()) {
			address := fmt.Sprintf("10.0.1.1:0/%d", watchers.Add(1))
			return address, c.Watch(pool, image, address)
		},
		Snapshot: func(_ *testing.T, pool, image, snapshot string) func() {
			c.AddSnapshot(pool, image, snapshot)
			return func() { c.RemoveSnapshot(pool, image, snapshot) }
		},
		Group: func(_ *testing.T, pool, image, group string) func() {
			return c.Hold(pool, image, fmt.Sprintf("rbd group image rm %s/%s %s/%s", pool, group, pool, image))
		},
		Write:      func(_ *testing.T, pool, image string) { c.Write(pool, image) },
		Trash:      func(_ *testing.T, pool string) []string { return c.Trash(pool) },
		AddRemains: func(_ *testing.T, pool, image string, remains rbdtest.Remains) { c.AddRemains(pool, image, remains) },
		CutOffMove: func(t *testing.T, pool, image string) {
			cutOff := errors.New("cut off")
			c.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, Image: image, Err: cutOff, HalfWay: true})
			creds := c.AddUser("dies", everything)
			cluster, err := c.Connect(t.Context(), creds)
			if err != nil {
				t.Fatal(err)
			}
			defer cluster.Close()
			p, err := cluster.OpenPool(t.Context(), pool)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if err := p.TrashImage(t.Context(), image, 0); !errors.Is(err, cutOff) {
				t.Fatal(err)
			}
		},
		Manager:    c.AddUser("manager", rbdtest.Caps{AllPools: true, Manager: true}),
		RunManager: c.RunManager,
		Pause: func(*testing.T) func() {
			c.Pause()
			return c.Resume
		},
		Disconnect: func(*testing.T, rbd.Connector) { c.Disconnect() },
	})
	t.Cleanup(func() {
		if n := c.Open(); n != 0 {
			t.Errorf("%d connections and pools were not closed", n)
		}
	})
}

// newCluster returns a cluster with the pool "images", and that pool, open.
func newCluster(t *testing.T) (*rbdtest.Cluster, rbd.Credentials, rbd.Pool) {
	t.Helper()
	c := rbdtest.NewCluster("10.0.0.1")
	c.AddPool("images")
	creds := c.AddUser("kube", rbdtest.Caps{AllPools: true})
	return c, creds, openPool(t, c, creds)
}

func openPool(t *testing.T, c rbd.Connector, creds rbd.Credentials) rbd.Pool {
	t.Helper()
	cluster, err := c.Connect(t.Context(), creds)
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	p, err := cluster.OpenPool(t.Context(), "images")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

var spec = rbd.ImageSpec{SizeBytes: 1 << 20}

func TestSeveralClusters(t *testing.T) {
	one, two := rbdtest.NewCluster("10.0.0.1", "10.0.0.2:6790"), rbdtest.NewCluster("v2:10.0.0.1:3300", "[2001:db8::1]")
	connector := rbdtest.NewConnector(one, two)
	users := map[*rbdtest.Cluster]rbd.Credentials{
		one: one.AddUser("kube", rbdtest.Caps{}), two: two.AddUser("kube", rbdtest.Caps{}),
	}
	for monitor, want := range map[string]*rbdtest.Cluster{
		"10.0.0.1": one, "10.0.0.1:6789": one, "v1:10.0.0.1": one, "v1:10.0.0.1:6789": one, "10.0.0.2:6790": one,
		"v2:10.0.0.1": two, "v2:10.0.0.1:3300": two, "[2001:db8::1]": two, "v1:[2001:db8::1]:6789": two,
	} {
		creds := users[want]
		creds.Monitors = []string{"10.0.0.9", monitor}
		cluster, err := connector.Connect(t.Context(), creds)
		if err != nil {
			t.Errorf("%s: %v", monitor, err)
			continue
		}
		if got := cluster.FSID(); got != want.FSID() {
			t.Errorf("%s leads to the wrong cluster", monitor)
		}
		cluster.Close()
	}
}

func TestUnreachable(t *testing.T) {
	c, creds, _ := newCluster(t)
	c.SetUnreachable(true)
	if _, err := c.Connect(t.Context(), creds); !errors.Is(err, rbd.ErrUnreachable) {
		t.Errorf("got %v, want ErrUnreachable", err)
	}
	c.SetUnreachable(false)
	openPool(t, c, creds)
}

func TestDisconnect(t *testing.T) {
	c, creds, p := newCluster(t)
	c.Disconnect()
	if err := p.CreateImage(t.Context(), "a", spec); !errors.Is(err, rbd.ErrConnectionLost) {
		t.Errorf("got %v, want ErrConnectionLost", err)
	}
	if err := openPool(t, c, creds).CreateImage(t.Context(), "a", spec); err != nil {
		t.Error(err)
	}
}

func TestOpen(t *testing.T) {
	c, _, p := newCluster(t)
	if got := c.Open(); got != 1 {
		t.Errorf("%d are open, want the pool alone", got)
	}
	p.Close()
	p.Close()
	if got := c.Open(); got != 0 {
		t.Errorf("%d are open, want none", got)
	}
}

func TestFakeFault(t *testing.T) {
	ctx := t.Context()
	for _, tc := range []struct {
		name            string
		fault           rbdtest.FakeFault
		images, remains []string
	}{
		{"the answer is lost", rbdtest.FakeFault{Err: rbd.ErrTimeout, TakesEffect: true}, []string{"a"}, nil},
		{"the question is lost", rbdtest.FakeFault{Err: rbd.ErrTimeout}, nil, nil},
		{"the client dies half way", rbdtest.FakeFault{Err: rbd.ErrTimeout, HalfWay: true}, nil, []string{"a"}},
		{"another image", rbdtest.FakeFault{Image: "b"}, []string{"a"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, _, p := newCluster(t)
			tc.fault.Call = rbdtest.CallCreateImage
			c.Fake(tc.fault)
			if err := p.CreateImage(ctx, "a", spec); !errors.Is(err, tc.fault.Err) {
				t.Errorf("got the error %v, want %v", err, tc.fault.Err)
			}
			if diff := cmp.Diff(tc.images, c.Images("images")); diff != "" {
				t.Errorf("the images differ (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.remains, c.Remains("images")); diff != "" {
				t.Errorf("the remains differ (-want +got):\n%s", diff)
			}
			// The fault hits only once.
			if err := p.RemoveImage(ctx, "a"); err != nil && !errors.Is(err, rbd.ErrImageNotFound) {
				t.Error(err)
			}
			if err := p.CreateImage(ctx, "a", spec); err != nil {
				t.Errorf("the second attempt: %v", err)
			}
		})
	}
	t.Run("every call", func(t *testing.T) {
		c, creds, p := newCluster(t)
		for _, call := range []rbdtest.Call{
			rbdtest.CallConnect, rbdtest.CallOpenPool, rbdtest.CallCreateImage, rbdtest.CallImage, rbdtest.CallSetMetadata, rbdtest.CallRemoveImage,
		} {
			c.Fake(rbdtest.FakeFault{Call: call, Err: rbd.ErrConnectionLost, Times: 2})
		}
		errs := make([]error, 6)
		for range 2 {
			_, errs[0] = c.Connect(ctx, creds)
			errs[2] = p.CreateImage(ctx, "a", spec)
			_, errs[3] = p.Image(ctx, "a")
			errs[4] = p.SetMetadata(ctx, "a", nil)
			errs[5] = p.RemoveImage(ctx, "a")
			for i, err := range errs {
				if i != 1 && !errors.Is(err, rbd.ErrConnectionLost) {
					t.Errorf("call %d gave %v", i, err)
				}
			}
		}
		cluster, err := c.Connect(ctx, creds)
		if err != nil {
			t.Fatal(err)
		}
		defer cluster.Close()
		if _, err := cluster.OpenPool(ctx, "images"); !errors.Is(err, rbd.ErrConnectionLost) {
			t.Errorf("OpenPool gave %v", err)
		}
	})
}

// TestFakeInterruptedRemoval leaves an image that only RemoveImage finds.
func TestFakeInterruptedRemoval(t *testing.T) {
	c, _, p := newCluster(t)
	ctx := t.Context()
	if err := p.CreateImage(ctx, "a", spec); err != nil {
		t.Fatal(err)
	}
	c.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, Err: rbd.ErrTimeout, HalfWay: true})
	if err := p.RemoveImage(ctx, "a"); !errors.Is(err, rbd.ErrTimeout) {
		t.Errorf("got %v, want ErrTimeout", err)
	}
	if _, err := p.Image(ctx, "a"); !errors.Is(err, rbd.ErrImageNotFound) {
		t.Errorf("got %v, want ErrImageNotFound", err)
	}
	if diff := cmp.Diff([]string{"a"}, c.Trash("images")); diff != "" {
		t.Errorf("the trash differs (-want +got):\n%s", diff)
	}
	if err := p.RemoveImage(ctx, "a"); err != nil {
		t.Error(err)
	}
	if left := c.Trash("images"); len(left) > 0 {
		t.Errorf("%q are left in the trash", left)
	}
}

// TestFakeInterruptedTrashRemoval leaves an entry in the trash without its image.
func TestFakeInterruptedTrashRemoval(t *testing.T) {
	c, _, p := newCluster(t)
	ctx := t.Context()
	if err := p.CreateImage(ctx, "a", spec); err != nil {
		t.Fatal(err)
	}
	image, err := p.Image(ctx, "a")
	if err := errors.Join(err, p.TrashImage(ctx, "a", 0)); err != nil {
		t.Fatal(err)
	}
	c.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Err: rbd.ErrTimeout, HalfWay: true})
	if err := p.RemoveTrashed(ctx, image.ID); !errors.Is(err, rbd.ErrTimeout) {
		t.Errorf("got %v, want ErrTimeout", err)
	}
	if _, err := p.Trashed(ctx, image.ID); err != nil {
		t.Errorf("the entry: %v", err)
	}
	if _, err := p.Snapshots(ctx, image.ID); !errors.Is(err, rbd.ErrImageNotFound) {
		t.Errorf("got %v for the image, want ErrImageNotFound", err)
	}
	if err := p.RemoveTrashed(ctx, image.ID); err != nil {
		t.Error(err)
	}
	if left := c.Trash("images"); len(left) > 0 {
		t.Errorf("%q are left in the trash", left)
	}
}

// TestFakeSlowCall shows how a test makes a call outlive its caller.
func TestFakeSlowCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, p := newCluster(t)
		if err := p.CreateImage(t.Context(), "big", spec); err != nil {
			t.Fatal(err)
		}
		c.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, Before: func() { time.Sleep(40 * time.Second) }})
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		if err := p.RemoveImage(ctx, "big"); !errors.Is(err, rbd.ErrTimeout) {
			t.Errorf("got %v, want ErrTimeout", err)
		}
		// The next attempt waits for the name, and finds the image gone.
		begin := time.Now()
		if err := p.RemoveImage(t.Context(), "big"); !errors.Is(err, rbd.ErrImageNotFound) {
			t.Errorf("got %v, want ErrImageNotFound", err)
		}
		if got, want := time.Since(begin), 25*time.Second; got != want {
			t.Errorf("the second attempt took %s, want %s", got, want)
		}
	})
}
