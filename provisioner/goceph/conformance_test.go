// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	rigs "ceph.com/rbd-provisioner/test/cluster"
)

// TestOnCeph runs everything that needs a real cluster, on one.
func TestOnCeph(t *testing.T) {
	c := startCeph(t)
	h := rbdtest.Harness{
		NewConnector: func(t *testing.T) rbd.Connector {
			c := newTestConnector(t, Config{Timeout: 10 * time.Second})
			c.idleTimeout = time.Second
			return c
		},
		Admin:       c.admin,
		Pool:        "images",
		OtherPool:   "other",
		ErasurePool: "erasure",
		NoDataPool:  "erasure-fixed",
		DeadMonitor: "v1:127.0.0.1:1",
		AddPool:     func(t *testing.T, pool string) { c.addPool(t, pool) },
		RemovePool:  c.removePool,
		AddUser: func(t *testing.T, user string) rbd.Credentials {
			return c.addUser(t, user, "mon", "profile rbd", "osd", "profile rbd")
		},
		SetFull:    c.setFull,
		Watch:      c.watch,
		Snapshot:   c.snapshot,
		Group:      c.group,
		Write:      c.write,
		Trash:      c.trash,
		AddRemains: c.addRemains,
		CutOffMove: c.cutOffMove,
		Pause:      c.pause,
		Disconnect: c.disconnect,
		Silent:     c.silent(),
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.rig.CreateErasurePool(t.Context(), h.ErasurePool); err != nil {
			t.Error(err)
			return
		}
		if _, err := c.rig.Run(t.Context(), "ceph", "osd", "pool", "create", h.NoDataPool, "4", "4", "erasure", "rig"); err != nil {
			t.Error(err)
		}
	})
	c.addPool(t, h.Pool)
	c.addPool(t, h.OtherPool)
	h.Restricted = c.addUser(t, "restricted", "mon", "profile rbd", "osd", "profile rbd pool="+h.Pool)
	h.Manager = c.addUser(t, "manager", "mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd")
	h.NoCaps = c.addUser(t, "no-caps", "mon", "allow r")
	h.NoMonitor = c.addUser(t, "no-monitor", "osd", "profile rbd")
	h.DeafMonitor = c.addUser(t, "deaf-monitor", "mon", `allow command "fsid"`, "osd", "profile rbd")
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}

	t.Run("HaltedOSD", c.testHaltedOSD)
	t.Run("IdleConnection", c.testIdleConnection)
	t.Run("Threads", c.testThreads)
	t.Run("Monitors", c.testMonitors)
	t.Run("Output", c.testOutput)
	t.Run("MetadataLikeLibrbd", c.testMetadataLikeLibrbd)
	t.Run("Manager", c.testManager)
	t.Run("ReadersDoNotWatch", c.testReadersDoNotWatch)
	t.Run("MovesCutOff", c.testMovesCutOff)
	t.Run("Defaults", c.testDefaults)
	t.Run("Holds", c.testHolds)
	t.Run("MendedCaps", c.testMendedCaps)
	t.Run("Conformance", func(t *testing.T) { rbdtest.Conformance(t, h) })
}

// testHaltedOSD halts the OSD for longer than every deadline while many images are being
// made. All calls end once it is back, and none leaves the header of an image without a
// name. If librados had a time limit for OSDs, some would.
func (c *ceph) testHaltedOSD(t *testing.T) {
	const pool, workers = "halted", 24
	c.addPool(t, pool)
	io := c.ioctx(t, c.conn, pool)
	connector := newTestConnector(t, Config{Timeout: time.Second})
	shared, err := connector.Connect(t.Context(), c.admin)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	p, err := shared.OpenPool(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for round := range 3 {
		var making sync.WaitGroup
		begun := make(chan struct{}, workers)
		for worker := range workers {
			making.Go(func() {
				for i := 0; ; i++ {
					err := p.CreateImage(t.Context(), fmt.Sprintf("halted-%d-%d-%d", round, worker, i), rbd.ImageSpec{SizeBytes: 1 << 20})
					if errors.Is(err, rbd.ErrTimeout) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					if i == 1 {
						begun <- struct{}{}
					}
				}
			})
		}
		for range workers {
			<-begun
		}
		resume := c.pause(t)
		making.Wait()
		resume()
	}
	if err := rigs.Eventually(t.Context(), 10*time.Second, func(context.Context) error {
		connector.mu.Lock()
		defer connector.mu.Unlock()
		for l := range connector.links {
			if l.calls > 0 || len(l.abandoned) > 0 {
				return fmt.Errorf("%d calls have not ended, and abandoned are %v", l.calls, l.abandoned)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	counts := map[string]int{}
	if err := io.ListObjects(func(object string) {
		kind, _, _ := strings.Cut(object, ".")
		counts[kind]++
	}); err != nil {
		t.Fatal(err)
	}
	if counts["rbd_header"] != counts["rbd_id"] {
		t.Errorf("%d images have a header, and %d a name", counts["rbd_header"], counts["rbd_id"])
	}
}

// testIdleConnection checks that an unused connection closes: it looks at the monitor's
// sessions.
func (c *ceph) testIdleConnection(t *testing.T) {
	user := c.addUser(t, "idle", "mon", "profile rbd", "osd", "profile rbd")
	connector := newTestConnector(t, Config{})
	connector.idleTimeout = time.Second
	shared, p := openImages(t, connector, user)
	sessions := func() int {
		out, err := c.rig.Run(t.Context(), "ceph", "tell", "mon.a", "sessions")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(out, `"client.idle"`)
	}
	if n := sessions(); n != 1 {
		t.Errorf("the monitor has %d sessions of the user, want 1", n)
	}
	p.Close()
	shared.Close()
	if err := rigs.Eventually(t.Context(), 30*time.Second, func(context.Context) error {
		if sessions() > 0 {
			return errors.New("the monitor still has a session of the user")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// testThreads checks that neither refused nor closed connections leave threads behind.
func (c *ceph) testThreads(t *testing.T) {
	threads := func() int {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	wrong := c.admin
	wrong.Key = rbdtest.NewKey()
	attempt := func() {
		connector := newTestConnector(t, Config{})
		if _, err := connector.Connect(t.Context(), wrong); !errors.Is(err, rbd.ErrPermissionDenied) {
			t.Fatalf("got %v, want ErrPermissionDenied", err)
		}
		one, err := connector.Connect(t.Context(), c.admin)
		if err != nil {
			t.Fatal(err)
		}
		one.Close()
		if err := connector.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	attempt() // The first attempt starts threads of Go and librados that stay.
	before := threads()
	for range 10 {
		attempt()
	}
	if err := rigs.Eventually(t.Context(), 10*time.Second, func(context.Context) error {
		// Go may have started a few threads for the calls.
		if threads() > before+8 {
			return errors.New("threads of librados are left")
		}
		return nil
	}); err != nil {
		t.Errorf("before: %d, after ten attempts: %d: %v", before, threads(), err)
	}
}

// testMonitors connects with every form of address.
func (c *ceph) testMonitors(t *testing.T) {
	connector := newTestConnector(t, Config{Timeout: 10 * time.Second})
	for _, monitors := range [][]string{
		{"v1:" + c.rig.MonitorV1}, {"v2:" + c.rig.MonitorV2}, {c.rig.MonitorV1}, {c.rig.MonitorV2},
		{"v2:" + c.rig.MonitorV2, "v1:" + c.rig.MonitorV1},
	} {
		creds := c.admin
		creds.Monitors = monitors
		got, err := connector.Connect(t.Context(), creds)
		if err != nil {
			t.Errorf("%s: %v", monitors, err)
			continue
		}
		if got.FSID() != c.rig.FSID {
			t.Errorf("%s: got the FSID %s, want %s", monitors, got.FSID(), c.rig.FSID)
		}
		got.Close()
	}
}

func TestVersion(t *testing.T) {
	if got := Version(); !regexp.MustCompile(`^\d+\.\d+\.\d+( \(Ceph \d+\.\d+\.\d+.*\))?$`).MatchString(got) {
		t.Errorf("the version is %q", got)
	}
}
