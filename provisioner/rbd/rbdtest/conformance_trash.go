// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// imageID returns the ID of an existing image.
func imageID(t *testing.T, p rbd.Pool, name string) string {
	t.Helper()
	image, err := p.Image(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return image.ID
}

// trash moves an image to the trash and returns its ID.
func trash(t *testing.T, p rbd.Pool, name string) string {
	t.Helper()
	id := imageID(t, p, name)
	if err := p.TrashImage(t.Context(), name, 0); err != nil {
		t.Fatalf("move image %q to the trash: %v", name, err)
	}
	return id
}

// trashGrouped makes an image in a group and moves it to the trash. From some release
// on, librbd refuses that and leaves the image as it was: then the ID is empty.
func (s suite) trashGrouped(t *testing.T, p rbd.Pool, pool, group string, size uint64) (id string) {
	t.Helper()
	create(t, p, "grouped", rbd.ImageSpec{SizeBytes: size})
	s.Group(t, pool, "grouped", group)
	id = imageID(t, p, "grouped")
	if err := p.TrashImage(t.Context(), "grouped", 0); errors.Is(err, rbd.ErrImageHeld) {
		if got := imageID(t, p, "grouped"); got != id || slices.Contains(s.Trash(t, pool), "grouped") {
			t.Errorf("image %q is %q after the refusal, the trash has %v", id, got, s.Trash(t, pool))
		}
		return ""
	} else if err != nil {
		t.Fatalf("move a group's image to the trash: %v", err)
	}
	return id
}

func (s suite) testTrashImage(t *testing.T) {
	t.Parallel()
	const pool = "trash"
	s.AddPool(t, pool)
	p := s.open(t, s.Admin, pool)
	lookUp := func(t *testing.T, name, id string) {
		t.Helper()
		got, err := p.Trashed(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if age := time.Since(got.Since); got.Name != name || got.Moving || age < -time.Minute || age > time.Hour {
			t.Errorf("the trash says %+v of an image that was called %q", got, name)
		}
	}
	t.Run("an image", func(t *testing.T) {
		// The move takes the same time for any size; a removal would exceed the deadline.
		create(t, p, "large", rbd.ImageSpec{SizeBytes: 1 << 50})
		if err := p.SetMetadata(t.Context(), "large", map[string]string{"a": "1"}); err != nil {
			t.Fatal(err)
		}
		id := trash(t, p, "large")
		_, err := p.Image(t.Context(), "large")
		wantError(t, err, rbd.ErrImageNotFound, `describe image "large" in pool "trash": `)
		lookUp(t, "large", id)
		// The image's name is free, and the image that takes it stays.
		create(t, p, "large", rbd.ImageSpec{SizeBytes: 1 << 20})
		if again := imageID(t, p, "large"); again == id {
			t.Errorf("two images have the ID %q", id)
		}
		lookUp(t, "large", id)
	})
	t.Run("kept for a while", func(t *testing.T) {
		create(t, p, "kept", rbd.ImageSpec{SizeBytes: 1 << 20})
		id := imageID(t, p, "kept")
		if err := p.TrashImage(t.Context(), "kept", 24*time.Hour); err != nil {
			t.Fatal(err)
		}
		lookUp(t, "kept", id)
		if err := p.RemoveTrashed(t.Context(), id); err != nil {
			t.Errorf("remove it all the same: %v", err)
		}
	})
	t.Run("no image", func(t *testing.T) {
		wantError(t, p.TrashImage(t.Context(), "nobody", 0), rbd.ErrImageNotFound, `move to the trash image "nobody" in pool "trash": `)
		_, err := p.Trashed(t.Context(), "4711")
		wantError(t, err, rbd.ErrImageNotFound, `look up image "4711" in the trash of pool "trash": `)
	})
	t.Run("an ID that begins another", func(t *testing.T) {
		create(t, p, "long", rbd.ImageSpec{SizeBytes: 1 << 20})
		id := trash(t, p, "long")
		_, err := p.Trashed(t.Context(), id[:len(id)-1])
		wantError(t, err, rbd.ErrImageNotFound, `look up image "`+id[:len(id)-1]+`" in the trash`)
	})
	t.Run("a move that was cut off", func(t *testing.T) {
		create(t, p, "cut", rbd.ImageSpec{SizeBytes: 1 << 20})
		id := imageID(t, p, "cut")
		s.CutOffMove(t, pool, "cut")
		if got, err := p.Trashed(t.Context(), id); err != nil || !got.Moving || got.Name != "cut" {
			t.Errorf("the trash says %+v, %v", got, err)
		}
		wantError(t, p.RemoveTrashed(t.Context(), id), rbd.ErrImageInUse, `remove image "`+id+`" in the trash of pool "trash": `)
		if err := p.TrashImage(t.Context(), "cut", 0); err != nil {
			t.Fatal(err)
		}
		lookUp(t, "cut", id)
		if err := p.RemoveTrashed(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
	t.Run("a move that was cut off, and a new image of the name", func(t *testing.T) {
		create(t, p, "cut-again", rbd.ImageSpec{SizeBytes: 1 << 20})
		id := imageID(t, p, "cut-again")
		s.CutOffMove(t, pool, "cut-again")
		create(t, p, "cut-again", rbd.ImageSpec{SizeBytes: 2 << 20})
		if err := p.RemoveTrashed(t.Context(), id); err != nil {
			t.Error(err)
		}
		if image := describe(t, p, "cut-again"); image.SizeBytes != 2<<20 {
			t.Errorf("the new image has %d bytes", image.SizeBytes)
		}
	})
}

func (s suite) testRemoveTrashed(t *testing.T) {
	t.Parallel()
	const pool = "trash-removed"
	s.AddPool(t, pool)
	p := s.open(t, s.Admin, pool)
	gone := func(t *testing.T, id string) {
		t.Helper()
		if err := p.RemoveTrashed(t.Context(), id); err != nil {
			t.Error(err)
		}
		_, err := p.Trashed(t.Context(), id)
		wantError(t, err, rbd.ErrImageNotFound, `look up image "`+id+`" in the trash of pool "`+pool+`": `)
		wantError(t, p.RemoveTrashed(t.Context(), id), rbd.ErrImageNotFound, `remove image "`+id+`" in the trash of pool "`+pool+`": `)
	}
	t.Run("beside a new image of the name", func(t *testing.T) {
		create(t, p, "twice", rbd.ImageSpec{SizeBytes: 1 << 30})
		id := trash(t, p, "twice")
		create(t, p, "twice", rbd.ImageSpec{SizeBytes: 2 << 30})
		gone(t, id)
		if image := describe(t, p, "twice"); image.SizeBytes != 2<<30 {
			t.Errorf("the new image has %d bytes", image.SizeBytes)
		}
	})
	t.Run("watched", func(t *testing.T) {
		create(t, p, "watched", rbd.ImageSpec{SizeBytes: 1 << 20})
		_, stop := s.Watch(t, pool, "watched")
		id := trash(t, p, "watched")
		wantError(t, p.RemoveTrashed(t.Context(), id), rbd.ErrImageInUse, `remove image "`+id+`" in the trash of pool "`+pool+`": `)
		stop()
		gone(t, id)
	})
	t.Run("with a snapshot", func(t *testing.T) {
		create(t, p, "snapped", rbd.ImageSpec{SizeBytes: 1 << 20})
		s.Snapshot(t, pool, "snapped", "s")
		id := trash(t, p, "snapped")
		wantError(t, p.RemoveTrashed(t.Context(), id), rbd.ErrImageHasSnapshots, `remove image "`+id+`" in the trash of pool "`+pool+`": `)
		if names := s.Trash(t, pool); !slices.Contains(names, "snapped") {
			t.Errorf("the trash has %v", names)
		}
	})
	t.Run("in a group", func(t *testing.T) {
		create(t, p, "grouped", rbd.ImageSpec{SizeBytes: 1 << 20})
		leave := s.Group(t, pool, "grouped", "nightly")
		got := describe(t, p, "grouped")
		want := []string{"rbd group image rm " + pool + "/nightly " + pool + "/grouped"}
		if !slices.Equal(got.Held, want) || len(got.Snapshots) != 0 {
			t.Errorf("got the image %+v, want that these end what holds it: %q", got, want)
		}
		wantError(t, p.RemoveImage(t.Context(), "grouped"), rbd.ErrImageHeld, `remove image "grouped" in pool "`+pool+`": `)
		leave()
		if got := describe(t, p, "grouped"); len(got.Held) != 0 {
			t.Errorf("an image of no group is held: %q", got.Held)
		}
		remove(t, p, "grouped")

		if id := s.trashGrouped(t, p, pool, "weekly", 1<<20); id != "" {
			wantError(t, p.RemoveTrashed(t.Context(), id), rbd.ErrImageHeld, `remove image "`+id+`" in the trash of pool "`+pool+`": `)
		}
	})
	t.Run("in a full pool", func(t *testing.T) {
		const full = "trash-full"
		s.AddPool(t, full)
		p := s.open(t, s.Admin, full)
		create(t, p, "first", rbd.ImageSpec{SizeBytes: 1 << 20})
		create(t, p, "second", rbd.ImageSpec{SizeBytes: 1 << 20})
		s.SetFull(t, full, true)
		for _, name := range []string{"first", "second"} { // at first, there is no trash yet
			id := trash(t, p, name)
			if err := p.RemoveTrashed(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
		s.SetFull(t, full, false)
	})
}
