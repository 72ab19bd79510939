// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"errors"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// testMendedCaps gives a user caps for OSDs after its first attempts failed for want of
// them. The next attempt succeeds, on the image that the earlier ones asked for, and these
// have left no connection.
func (c *ceph) testMendedCaps(t *testing.T) {
	const user, pool, timeout = "mended", "images", 2 * time.Second
	creds := c.addUser(t, user, "mon", "profile rbd")
	connector := newTestConnector(t, Config{Timeout: timeout})
	connector.idleTimeout = 0
	attempt := func() error {
		cluster, err := connector.Connect(t.Context(), creds)
		if err != nil {
			t.Fatal(err)
		}
		defer cluster.Close()
		p, err := cluster.OpenPool(t.Context(), pool)
		if err != nil {
			return err
		}
		defer p.Close()
		return p.CreateImage(t.Context(), "mended", rbd.ImageSpec{SizeBytes: 1 << 20})
	}
	want := rbd.ErrPermissionDenied
	if c.silent() {
		want = rbd.ErrNoOSD
	}
	for range 2 {
		begin := time.Now()
		if err := attempt(); !errors.Is(err, want) {
			t.Errorf("without caps for OSDs: got %v, want %q", err, want)
		}
		if took := time.Since(begin); took > timeout+grace+time.Second {
			t.Errorf("it took %s", took)
		}
	}
	c.command(t, "auth caps", map[string]any{"entity": "client." + user, "caps": []string{"mon", "profile rbd", "osd", "profile rbd"}})
	if err := attempt(); err != nil {
		t.Errorf("with caps: %v", err)
	}
	connector.mu.Lock()
	defer connector.mu.Unlock()
	for l := range connector.links {
		if l.calls > 0 || len(l.abandoned) > 0 {
			t.Errorf("%d calls have not ended", l.calls)
		}
	}
}
