// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"testing"

	librbd "github.com/ceph/go-ceph/rbd"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// testReadersDoNotWatch checks that a client that describes an image does not watch it, as
// far as it or another client can see: kubelet maps no image that has a watcher.
func (c *ceph) testReadersDoNotWatch(t *testing.T) {
	const pool, name = "images", "open-to-read"
	p := &radosPool{conn: c.conn, io: c.ioctx(t, c.conn, pool)}
	if err := p.CreateImage(t.Context(), name, rbd.ImageSpec{SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	// As radosPool.Image opens it.
	handle, err := librbd.OpenImageReadOnly(c.ioctx(t, c.dial(t), pool), name, librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = handle.Close() }() // only read
	if watchers, err := handle.ListWatchers(); err != nil || len(watchers) > 0 {
		t.Errorf("who has it open sees the watchers %v, %v", watchers, err)
	}
	if image, err := p.Image(t.Context(), name); err != nil || len(image.Watchers) > 0 {
		t.Errorf("another client sees the watchers %v, %v", image.Watchers, err)
	}
}
