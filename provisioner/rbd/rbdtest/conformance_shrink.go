// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"testing"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

func (s suite) testShrinkTrashed(t *testing.T) {
	t.Parallel()
	const pool, data, objects = "trash-shrunk", "trash-shrunk-data", 4
	s.AddPool(t, pool)
	s.AddPool(t, data)
	p := s.open(t, s.Admin, pool)
	attempt := func(id string) string { return `shrink image "` + id + `" in the trash of pool "` + pool + `": ` }
	// goes shrinks an image to nothing and removes it.
	goes := func(t *testing.T, id string, sizes ...uint64) {
		t.Helper()
		for _, want := range append(sizes, 0, 0) {
			if left, err := p.ShrinkTrashed(t.Context(), id, objects); err != nil || left != want {
				t.Fatalf("%d bytes are left, want %d: %v", left, want, err)
			}
		}
		if err := p.RemoveTrashed(t.Context(), id); err != nil {
			t.Error(err)
		}
		_, err := p.ShrinkTrashed(t.Context(), id, objects)
		wantError(t, err, rbd.ErrImageNotFound, attempt(id))
	}
	stays := func(t *testing.T, id string, want error) {
		t.Helper()
		_, err := p.ShrinkTrashed(t.Context(), id, objects)
		wantError(t, err, want, attempt(id))
	}
	for name, spec := range map[string]rbd.ImageSpec{
		"an-image":              {SizeBytes: 42 << 20},
		"of an odd size":        {SizeBytes: 42<<20 - 1},
		"with data in a pool":   {SizeBytes: 42 << 20, DataPool: data},
		"with data in erasures": {SizeBytes: 42 << 20, DataPool: s.ErasurePool},
	} {
		t.Run(name, func(t *testing.T) {
			create(t, p, name, spec)
			s.Write(t, pool, name)
			goes(t, trash(t, p, name), 32<<20, 16<<20)
		})
	}
	t.Run("a small one", func(t *testing.T) {
		create(t, p, "small", rbd.ImageSpec{SizeBytes: 16 << 20})
		goes(t, trash(t, p, "small"))
	})
	t.Run("not in the trash", func(t *testing.T) {
		create(t, p, "used", rbd.ImageSpec{SizeBytes: 42 << 20})
		stays(t, imageID(t, p, "used"), rbd.ErrImageNotFound)
		if image := describe(t, p, "used"); image.SizeBytes != 42<<20 {
			t.Errorf("the image has %d bytes", image.SizeBytes)
		}
		stays(t, "4711", rbd.ErrImageNotFound)
	})
	t.Run("watched", func(t *testing.T) {
		create(t, p, "watched", rbd.ImageSpec{SizeBytes: 42 << 20})
		_, stop := s.Watch(t, pool, "watched")
		id := trash(t, p, "watched")
		stays(t, id, rbd.ErrImageInUse)
		stop()
		goes(t, id, 32<<20, 16<<20)
	})
	t.Run("with a snapshot", func(t *testing.T) {
		create(t, p, "snapped", rbd.ImageSpec{SizeBytes: 42 << 20})
		s.Snapshot(t, pool, "snapped", "s")
		stays(t, trash(t, p, "snapped"), rbd.ErrImageHasSnapshots)
	})
	t.Run("in a group", func(t *testing.T) {
		if id := s.trashGrouped(t, p, pool, "nightly", 42<<20); id != "" {
			stays(t, id, rbd.ErrImageHeld)
		}
	})
	t.Run("a source, then its clone", func(t *testing.T) {
		create(t, p, "source", rbd.ImageSpec{SizeBytes: 42 << 20})
		s.Write(t, pool, "source")
		source := imageID(t, p, "source")
		if err := p.SnapshotImage(t.Context(), source, "s"); err != nil {
			t.Fatal(err)
		}
		if err := p.CloneImage(t.Context(), "clone", rbd.CloneSpec{Source: "source", Snapshot: "s"}); err != nil {
			t.Fatal(err)
		}
		if err := p.RemoveSnapshot(t.Context(), source, "s"); err != nil {
			t.Fatal(err)
		}
		trash(t, p, "source")
		clone := trash(t, p, "clone")
		stays(t, source, rbd.ErrImageHasSnapshots)
		goes(t, clone, 32<<20, 16<<20)
		goes(t, source, 32<<20, 16<<20)
	})
	t.Run("a move that was cut off", func(t *testing.T) {
		create(t, p, "cut", rbd.ImageSpec{SizeBytes: 42 << 20})
		id := imageID(t, p, "cut")
		s.CutOffMove(t, pool, "cut")
		stays(t, id, rbd.ErrImageInUse)
		create(t, p, "cut", rbd.ImageSpec{SizeBytes: 42 << 20})
		goes(t, id, 32<<20, 16<<20)
		if image := describe(t, p, "cut"); image.SizeBytes != 42<<20 {
			t.Errorf("the new image has %d bytes", image.SizeBytes)
		}
	})
	t.Run("in a full pool", func(t *testing.T) {
		create(t, p, "full", rbd.ImageSpec{SizeBytes: 42 << 20})
		id := trash(t, p, "full")
		s.SetFull(t, pool, true)
		goes(t, id, 32<<20, 16<<20)
		s.SetFull(t, pool, false)
	})
}
