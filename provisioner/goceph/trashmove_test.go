// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	librbd "github.com/ceph/go-ceph/rbd"
	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// trashMoves are tests of moveToTrash in a pool of their own.
type trashMoves struct {
	*ceph
	*radosPool
	pool string
}

// testTrashLikeLibrbd checks that images are moved to the trash as librbd does it,
// that librbd does it for all but plain ones, and that a move that is cut off is
// settled.
func (c *ceph) testTrashLikeLibrbd(t *testing.T) {
	m := trashMoves{c, nil, "trashed-plainly"}
	c.addPool(t, m.pool)
	m.radosPool = &radosPool{conn: c.conn, io: c.ioctx(t, c.conn, m.pool)}
	t.Run("no trash yet", func(t *testing.T) {
		m.create(t, "first")
		if err := m.moveToTrash("first", 0); err != nil && !errors.Is(err, errNotPlain) {
			t.Fatal(err)
		} else if err != nil {
			if err := m.trashImage("first", 0); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("the same is left", m.testSame)
	t.Run("rbd and its entry", m.testCommands)
	t.Run("cut off", m.testCutOff)
	t.Run("not plain", m.testNotPlain)
}

func (m trashMoves) create(t *testing.T, name string) (id string) {
	t.Helper()
	if err := m.createImage(name, rbd.ImageSpec{SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	id, err := m.imageID(name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (m trashMoves) rbd(t *testing.T, args ...string) string {
	t.Helper()
	out, err := m.rig.Run(t.Context(), "rbd", args...)
	if err != nil {
		t.Fatalf("rbd %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// left is what an image of that name and ID has left: its entry in the trash, without
// the time, and what holds the name.
func (m trashMoves) left(t *testing.T, name, id string) map[string][]byte {
	t.Helper()
	left := map[string][]byte{}
	entry, err := m.omapValue(trashObject, trashKey+id)
	if err != nil {
		t.Fatal(err)
	}
	// Two times of eight bytes, in front of the state.
	times := len(entry) - 1 - 16
	seconds := func(at int) int {
		return int(entry[at]) + int(entry[at+1])<<8 + int(entry[at+2])<<16 + int(entry[at+3])<<24
	}
	left["kept"] = []byte(time.Duration(seconds(times+8) - seconds(times)).String())
	left["the same fraction of a second"] = append(entry[times+4:times+8:times+8], 0)[4:]
	if string(entry[times+4:times+8]) != string(entry[times+12:times+16]) {
		t.Errorf("the two times differ in their fractions of a second: %x", entry)
	}
	left["before the times"], left["state"] = entry[:times], entry[times+16:]
	for _, key := range []string{directoryName + name, "id_" + id} {
		if value, err := m.omapValue(directoryObject, key); err == nil {
			left[key] = value
		}
	}
	if holder, err := m.imageID(name); err == nil {
		left["rbd_id"] = []byte(holder)
	}
	return left
}

func (m trashMoves) testSame(t *testing.T) {
	for _, keep := range []time.Duration{0, time.Minute, 36 * time.Hour, 1500 * time.Millisecond} {
		var left [2]map[string][]byte
		for i, move := range []func(string, time.Duration) error{m.moveToTrash, m.trashImageOpen} {
			id := m.create(t, "same")
			if err := move("same", keep); err != nil {
				t.Fatal(err)
			}
			left[i] = m.left(t, "same", id)
			if e, err := m.trashEntry(id); err != nil || time.Since(e.since).Abs() > time.Hour {
				t.Errorf("its entry says %+v, %v", e, err)
			}
		}
		if diff := cmp.Diff(left[1], left[0]); diff != "" {
			t.Errorf("kept for %s: what is left differs (-librbd +ours):\n%s", keep, diff)
		}
	}
}

func (m trashMoves) testCommands(t *testing.T) {
	list := func(t *testing.T) map[string]string {
		t.Helper()
		var entries []struct{ ID, Name, Source, Status string }
		if err := json.Unmarshal([]byte(m.rbd(t, "trash", "ls", "--all", "--long", "--format", "json", m.pool)), &entries); err != nil {
			t.Fatal(err)
		}
		listed := map[string]string{}
		for _, e := range entries {
			// A status that ends in the time when it may be removed.
			status, _, _ := strings.Cut(e.Status, " 2")
			listed[e.ID] = strings.Join([]string{e.Name, e.Source, status}, " ")
		}
		return listed
	}
	var ids [4]string
	for i, move := range []func(string, time.Duration) error{m.moveToTrash, m.trashImageOpen, m.moveToTrash, m.trashImageOpen} {
		ids[i] = m.create(t, "listed")
		if err := move("listed", time.Duration(i/2)*time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	listed := list(t)
	for i := 0; i < len(ids); i += 2 {
		if ours, librbds := listed[ids[i]], listed[ids[i+1]]; ours != librbds || ours == "" {
			t.Errorf("rbd trash ls says %q, and of librbd's %q", ours, librbds)
		}
	}
	// Purging removes those that are not kept, restoring takes one out.
	m.rbd(t, "trash", "purge", m.pool)
	listed = list(t)
	for i, id := range ids {
		if _, found := listed[id]; found != (i >= 2) {
			t.Errorf("after rbd trash purge, image %d is in the trash: %t", i, found)
		}
	}
	m.rbd(t, "trash", "restore", m.pool+"/"+ids[2])
	if image, err := m.imageOpen("listed"); err != nil || image.ID != ids[2] {
		t.Errorf("the restored image: %+v, %v", image, err)
	}
	if err := m.trashImage("listed", 0); err != nil {
		t.Errorf("move it to the trash again: %v", err)
	}
	m.rbd(t, "trash", "rm", m.pool+"/"+ids[2])
}

// cutOff moves an image to the trash as far as the first steps go.
func (m trashMoves) cutOff(t *testing.T, name string, steps int) (id string) {
	t.Helper()
	id = m.create(t, name)
	for _, step := range []func() error{
		func() error { return m.addToTrash(id, newTrashEntry(name, time.Now(), 0)) },
		func() error { return m.removeID(name) },
		func() error { return m.unlist(name, id) },
	}[:steps] {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

func (m trashMoves) testCutOff(t *testing.T) {
	for steps := 1; steps <= 3; steps++ {
		for what, settle := range map[string]func(t *testing.T, name, id string){
			"goes on when it is moved again": func(t *testing.T, name, id string) {
				if got, err := m.trashed(id); err != nil || !got.Moving || got.Name != name {
					t.Errorf("the trash says %+v, %v", got, err)
				}
				if err := m.removeTrashed(id); !errors.Is(err, rbd.ErrImageInUse) {
					t.Errorf("remove it before that: got %v, want that it is in use", err)
				}
				if err := m.finishRemovals([]string{name}); err != nil {
					t.Error(err)
				}
				if err := m.trashImage(name, 0); err != nil {
					t.Fatal(err)
				}
			},
			"goes on with librbd": func(t *testing.T, name, _ string) {
				if err := m.trashImageOpen(name, 0); err != nil {
					t.Fatal(err)
				}
			},
		} {
			name := strings.ReplaceAll(what, " ", "-") + "-" + strings.Repeat("i", steps)
			t.Run(name, func(t *testing.T) {
				id := m.cutOff(t, name, steps)
				settle(t, name, id)
				if got, err := m.trashed(id); err != nil || got.Moving {
					t.Errorf("the trash says %+v, %v", got, err)
				}
				left := m.left(t, name, id)
				if left["rbd_id"] != nil || left[directoryName+name] != nil || left["id_"+id] != nil {
					t.Errorf("its name is not free: %q", left)
				}
				if err := m.removeTrashed(id); err != nil {
					t.Error(err)
				}
			})
		}
	}
	t.Run("and a new image of the name", func(t *testing.T) {
		id := m.cutOff(t, "again", 3)
		other := m.create(t, "again")
		if err := m.removeTrashed(id); err != nil {
			t.Error(err)
		}
		if image, err := m.imageOpen("again"); err != nil || image.ID != other {
			t.Errorf("the new image: %+v, %v", image, err)
		}
	})
}

func (m trashMoves) testNotPlain(t *testing.T) {
	for name, change := range map[string]func(name, id string){
		"in-the-trash-already": func(name, id string) {
			if err := m.addToTrash(id, newTrashEntry(name, time.Now(), 0)); err != nil {
				t.Fatal(err)
			}
		},
		"with-a-snapshot": func(name, _ string) { m.snapshot(t, m.pool, name, "s") },
		"with-a-feature":  func(name, _ string) { m.rbd(t, "feature", "enable", m.pool+"/"+name, "exclusive-lock") },
		"mirrored": func(name, _ string) {
			m.rbd(t, "mirror", "pool", "enable", m.pool, "image")
			m.rbd(t, "mirror", "image", "enable", m.pool+"/"+name, "snapshot")
		},
	} {
		t.Run(name, func(t *testing.T) {
			id := m.create(t, name)
			change(name, id)
			if err := m.moveToTrash(name, 0); !errors.Is(err, errNotPlain) {
				t.Fatalf("got %v, want that it is left to librbd", err)
			}
			if err := m.trashImage(name, 0); err != nil {
				t.Fatal(err)
			}
			if got, err := m.trashed(id); err != nil || got.Moving {
				t.Errorf("the trash says %+v, %v", got, err)
			}
		})
	}
	t.Run("in-a-group", func(t *testing.T) {
		m.create(t, "grouped")
		m.rbd(t, "group", "create", m.pool+"/group")
		m.rbd(t, "group", "image", "add", m.pool+"/group", m.pool+"/grouped")
		// Which newer versions refuse.
		if err := m.moveToTrash("grouped", 0); !errors.Is(err, errNotPlain) {
			t.Errorf("got %v, want that it is left to librbd", err)
		}
	})
	t.Run("kept-for-ever", func(t *testing.T) {
		m.create(t, "ever")
		if err := m.moveToTrash("ever", math.MaxInt64); !errors.Is(err, errNotPlain) {
			t.Errorf("got %v, want that it is left to librbd", err)
		}
	})
	t.Run("no image", func(t *testing.T) {
		if err := m.trashImage("nobody", 0); !errors.Is(err, librbd.ErrNotFound) {
			t.Errorf("got %v, want that it is not found", err)
		}
	})
}
