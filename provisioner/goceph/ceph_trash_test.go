// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"errors"
	"fmt"
	"testing"

	librbd "github.com/ceph/go-ceph/rbd"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// moveSteps are librbd's steps to move an image to the trash: it adds an entry there,
// removes the object that translates the name, and then the name from the directory. A last
// step sets in the entry that the move is over.
// Source: MoveRequest.cc in Ceph's src/librbd/trash.
const moveSteps = 3

// cutOffMove moves an image to the trash, except for the last step.
func (c *ceph) cutOffMove(t *testing.T, pool, image string) {
	t.Helper()
	c.cutOffMoveAfter(t, pool, image, moveSteps)
}

// cutOffMoveAfter moves an image to the trash, sets its entry there to the state before the
// end of the move, and undoes all but the first steps.
func (c *ceph) cutOffMoveAfter(t *testing.T, pool, image string, steps int) (id string) {
	t.Helper()
	io := c.ioctx(t, c.conn, pool)
	handle, err := librbd.OpenImageReadOnly(io, image, librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	id, err = handle.GetId()
	if err := errors.Join(err, handle.Close()); err != nil {
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
	// It follows header, source, the name's length, the name and two times.
	state := 6 + 1 + 4 + len(image) + 16
	if len(entry) <= state || entry[state] != trashNormal {
		t.Fatalf("the entry is %x", entry)
	}
	entry[state] = trashMoving
	if err := io.SetOmap(trashObject, map[string][]byte{key: entry}); err != nil {
		t.Fatal(err)
	}
	if steps < moveSteps {
		names := map[string][]byte{"name_" + image: appendText(nil, id), "id_" + id: appendText(nil, image)}
		if err := io.SetOmap("rbd_directory", names); err != nil {
			t.Fatal(err)
		}
	}
	if steps < moveSteps-1 {
		if err := io.WriteFull(idObject+image, appendText(nil, id)); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

// testMovesCutOff checks that a move to the trash can continue wherever it was cut off, and
// that the image is not removed before.
func (c *ceph) testMovesCutOff(t *testing.T) {
	const pool = "moves-cut-off"
	c.addPool(t, pool)
	p := &radosPool{conn: c.conn, io: c.ioctx(t, c.conn, pool)}
	for steps := 1; steps <= moveSteps; steps++ {
		t.Run(fmt.Sprintf("after %d", steps), func(t *testing.T) {
			name := fmt.Sprint("image-", steps)
			spec := rbd.ImageSpec{SizeBytes: 1 << 20}
			if err := p.CreateImage(t.Context(), name, spec); err != nil {
				t.Fatal(err)
			}
			id := c.cutOffMoveAfter(t, pool, name, steps)
			if err := p.RemoveTrashed(t.Context(), id); !errors.Is(err, rbd.ErrImageInUse) {
				t.Errorf("remove it before that: got %v, want that it is in use", err)
			}
			if err := p.FinishRemovals(t.Context(), name); err != nil {
				t.Error(err)
			}
			if got, err := p.Trashed(t.Context(), id); err != nil || !got.Moving || got.Name != name {
				t.Errorf("the trash says %+v, %v", got, err)
			}
			if err := p.TrashImage(t.Context(), name, 0); err != nil {
				t.Fatal(err)
			}
			if got, err := p.Trashed(t.Context(), id); err != nil || got.Moving {
				t.Errorf("once it has gone on, the trash says %+v, %v", got, err)
			}
			if err := p.CreateImage(t.Context(), name, spec); err != nil {
				t.Errorf("its name is not free: %v", err)
			}
			if err := p.RemoveTrashed(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
}
