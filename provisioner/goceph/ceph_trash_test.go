// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"testing"

	librbd "github.com/ceph/go-ceph/rbd"
)

// cutOffMove moves an image to the trash, and then gives its entry there the
// state that it has until the move is over.
func (c *ceph) cutOffMove(t *testing.T, pool, image string) {
	t.Helper()
	io := c.ioctx(t, c.conn, pool)
	handle, err := librbd.OpenImageReadOnly(io, image, librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	id, err := handle.GetId()
	if err != nil {
		t.Fatal(err)
	}
	if err := handle.Close(); err != nil {
		t.Fatal(err)
	}
	if err := librbd.GetImage(io, image).Trash(0); err != nil {
		t.Fatal(err)
	}
	key := trashKey + id
	entries, err := io.GetOmapValues(trashObject, "", key, 1)
	if err != nil {
		t.Fatal(err)
	}
	entry := entries[key]
	// Behind header, source, the name's length, the name and two times.
	state := 6 + 1 + 4 + len(image) + 16
	if len(entry) <= state || entry[state] != 0 {
		t.Fatalf("the entry is %x", entry)
	}
	entry[state] = trashMoving
	if err := io.SetOmap(trashObject, map[string][]byte{key: entry}); err != nil {
		t.Fatal(err)
	}
}
