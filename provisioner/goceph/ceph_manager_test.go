// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"errors"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	rigs "ceph.com/rbd-provisioner/test/cluster"
)

// testManager has a manager that does not answer, or denies.
func (c *ceph) testManager(t *testing.T) {
	const pool = "managed"
	c.addPool(t, pool)
	t.Run("Paused", func(t *testing.T) { c.testManagerPaused(t, pool) })
	t.Run("Denies", func(t *testing.T) { c.testManagerDenies(t, pool) })
	t.Run("Monitors", c.testManagerMonitors)
}

// testManagerPaused checks that a manager's answer may come after the caller gave up: with
// a deadline of librados's own, this process would abort.
func (c *ceph) testManagerPaused(t *testing.T, pool string) {
	connector := newTestConnector(t, Config{Timeout: time.Second})
	closed, err := New(Config{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	p := c.managed(t, connector, c.admin, pool)
	other := c.managed(t, closed, c.admin, pool)
	ids := []string{c.intoTrash(t, p, "first", 1<<20), c.intoTrash(t, p, "second", 1<<20)}
	// One connection exists before the pause, the other is made during it.
	if err := p.HandOverTrashed(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.rig.Mgr.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	resumed := false
	resume := func() {
		if resumed {
			return
		}
		resumed = true
		if err := c.rig.Mgr.Resume(); err != nil {
			t.Fatal(err)
		}
	}
	defer resume()
	for _, p := range []rbd.Pool{p, other} {
		if err := p.HandOverTrashed(t.Context(), ids[1]); !errors.Is(err, rbd.ErrTimeout) {
			t.Errorf("got %v, want ErrTimeout", err)
		}
		if err := p.HandOverTrashed(t.Context(), ids[1]); !errors.Is(err, rbd.ErrTimeout) {
			t.Errorf("got %v, want ErrTimeout while the first is under way", err)
		}
		if _, err := p.Trashed(t.Context(), ids[1]); err != nil {
			t.Errorf("a call that needs no manager: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := closed.Close(ctx); err != nil {
		t.Errorf("close while a request is under way: %v", err)
	}
	resume()

	answered := func(connector *Connector) error {
		connector.managerTurns.mu.Lock()
		defer connector.managerTurns.mu.Unlock()
		if len(connector.managerTurns.waiting) > 0 {
			return errors.New("the manager has not answered")
		}
		return nil
	}
	if err := rigs.Eventually(t.Context(), time.Minute, func(context.Context) error {
		return errors.Join(answered(connector), answered(closed))
	}); err != nil {
		t.Fatal(err)
	}
	// Now the manager does what it was asked during the pause.
	for _, id := range ids {
		if err := rigs.Eventually(t.Context(), time.Minute, func(ctx context.Context) error {
			if _, err := p.Trashed(ctx, id); !errors.Is(err, rbd.ErrImageNotFound) {
				return errors.Join(errors.New("it is in the trash"), err)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	third := c.intoTrash(t, p, "third", 1<<20)
	if err := p.HandOverTrashed(t.Context(), third); err != nil {
		t.Errorf("a request after the pause: %v", err)
	}
}

// testManagerDenies checks that a denial by the manager does not affect the shared
// connection.
func (c *ceph) testManagerDenies(t *testing.T, pool string) {
	denied := c.addUser(t, "unmanaged", "mon", "profile rbd", "osd", "profile rbd")
	connector := newTestConnector(t, Config{Timeout: 10 * time.Second})
	p := c.managed(t, connector, denied, pool)
	id := c.intoTrash(t, p, "denied", 1<<20)
	if err := p.HandOverTrashed(t.Context(), id); !errors.Is(err, rbd.ErrPermissionDenied) {
		t.Errorf("got %v, want ErrPermissionDenied", err)
	}
	connector.mu.Lock()
	if len(connector.links) != 1 {
		t.Errorf("there are %d connections", len(connector.links))
	}
	for l := range connector.links {
		if l.retired {
			t.Error("the connection was retired")
		}
	}
	connector.mu.Unlock()

	// Corrected caps, also those for a single pool, take effect when the pool is opened
	// again.
	c.command(t, "auth caps", map[string]any{"entity": "client.unmanaged",
		"caps": []string{"mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd pool=" + pool}})
	if err := c.managed(t, connector, denied, pool).HandOverTrashed(t.Context(), id); err != nil {
		t.Errorf("with the cap: %v", err)
	}
}

// testManagerMonitors checks that connecting has a time limit, though commands have none.
func (c *ceph) testManagerMonitors(t *testing.T) {
	for name, begin := range map[string]func(*rbd.Credentials){
		"nobody listens": func(creds *rbd.Credentials) { creds.Monitors = []string{"v1:127.0.0.1:1"} },
		"paused": func(*rbd.Credentials) {
			if err := c.rig.Mon.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			creds := c.admin
			begin(&creds)
			if name == "paused" {
				defer func() {
					if err := c.rig.Mon.Resume(); err != nil {
						t.Error(err)
					}
				}()
			}
			// No caller's deadline ends this attempt.
			if _, err := dialManager(Config{Timeout: time.Second}, creds); !errors.Is(translateConnect(err), rbd.ErrUnreachable) {
				t.Errorf("got %v, want ErrUnreachable", err)
			}
		})
	}
}

// managed returns an open pool with a connection of its own.
func (c *ceph) managed(t testing.TB, connector *Connector, creds rbd.Credentials, pool string) rbd.Pool {
	t.Helper()
	cluster, err := connector.Connect(t.Context(), creds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	p, err := cluster.OpenPool(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// intoTrash makes an empty image, moves it to the trash, and returns its ID.
func (c *ceph) intoTrash(t testing.TB, p rbd.Pool, name string, sizeBytes uint64) string {
	t.Helper()
	if err := p.CreateImage(t.Context(), name, rbd.ImageSpec{SizeBytes: sizeBytes}); err != nil {
		t.Fatal(err)
	}
	image, err := p.Image(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.TrashImage(t.Context(), name, 0); err != nil {
		t.Fatal(err)
	}
	return image.ID
}
