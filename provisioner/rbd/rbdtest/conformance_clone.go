// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// clone makes a clone of an image, from a snapshot that it removes afterwards.
func clone(t *testing.T, p rbd.Pool, source, name string) {
	t.Helper()
	const snapshot = "for-a-clone"
	id := imageID(t, p, source)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("clone image %q: %v", source, err)
		}
	}
	check(p.SnapshotImage(t.Context(), id, snapshot))
	if has, err := p.HasClone(t.Context(), id, snapshot, id); err != nil || has {
		t.Errorf("that the snapshot has a clone is %v, error %v", has, err)
	}
	check(p.CloneImage(t.Context(), name, rbd.CloneSpec{Source: source, Snapshot: snapshot}))
	if has, err := p.HasClone(t.Context(), id, snapshot, imageID(t, p, name)); err != nil || !has {
		t.Errorf("that the snapshot has its clone is %v, error %v", has, err)
	}
	check(p.RemoveSnapshot(t.Context(), id, snapshot))
}

func (s suite) testSnapshotImage(t *testing.T) {
	t.Parallel()
	const pool = "snapshots"
	s.AddPool(t, pool)
	p := s.open(t, s.Admin, pool)
	create(t, p, "source", rbd.ImageSpec{SizeBytes: 8 << 20})
	id := imageID(t, p, "source")
	wantSnapshots := func(want ...string) {
		t.Helper()
		image := describe(t, p, "source")
		if !slices.Equal(image.Snapshots, want) || image.Kept != 0 {
			t.Errorf("the image has the snapshots %q, and %d more: want %q", image.Snapshots, image.Kept, want)
		}
		if got, err := p.Snapshots(t.Context(), id); err != nil || !slices.Equal(got, want) {
			t.Errorf("got the snapshots %q, error %v; want %q", got, err, want)
		}
	}
	wantSnapshots()
	for _, name := range []string{"b", "a", "b"} {
		if err := p.SnapshotImage(t.Context(), id, name); err != nil {
			t.Fatal(err)
		}
	}
	wantSnapshots("a", "b")
	for range 2 { // The second time, there is none.
		if err := p.RemoveSnapshot(t.Context(), id, "a"); err != nil {
			t.Fatal(err)
		}
	}
	wantSnapshots("b")
	if _, err := p.HasClone(t.Context(), id, "a", id); !errors.Is(err, rbd.ErrImageNotFound) {
		t.Errorf("of a snapshot that is not there: got %v", err)
	}

	// This works for an image in the trash, too.
	trash(t, p, "source")
	wantError(t, p.RemoveTrashed(t.Context(), id), rbd.ErrImageHasSnapshots, `remove image "`+id+`" in the trash`)
	if got, err := p.Snapshots(t.Context(), id); err != nil || !slices.Equal(got, []string{"b"}) {
		t.Errorf("in the trash the image has the snapshots %q, error %v", got, err)
	}
	if err := p.RemoveSnapshot(t.Context(), id, "b"); err != nil {
		t.Error(err)
	}
	if err := p.RemoveTrashed(t.Context(), id); err != nil {
		t.Error(err)
	}

	in := ` in pool "` + pool + `": `
	wantError(t, p.SnapshotImage(t.Context(), id, "a"), rbd.ErrImageNotFound, `make a snapshot of the image with the ID "`+id+`"`+in)
	_, err := p.HasClone(t.Context(), id, "a", "b")
	wantError(t, err, rbd.ErrImageNotFound, `list the clones of the image with the ID "`+id+`"`+in)
	_, err = p.Snapshots(t.Context(), id)
	wantError(t, err, rbd.ErrImageNotFound, `list the snapshots of the image with the ID "`+id+`"`+in)
	if err := p.RemoveSnapshot(t.Context(), id, "a"); err != nil {
		t.Errorf("remove a snapshot of an image that is not there: %v", err)
	}
	for _, bad := range []string{"", "a\x00b"} {
		wantError(t, p.SnapshotImage(t.Context(), id, bad), rbd.ErrNotSupported, `make a snapshot of the image with the ID`)
		wantError(t, p.RemoveSnapshot(t.Context(), id, bad), rbd.ErrNotSupported, `remove a snapshot of the image with the ID`)
	}
}

func (s suite) testCloneImage(t *testing.T) {
	t.Parallel()
	const pool = "clones"
	s.AddPool(t, pool)
	p := s.open(t, s.Admin, pool)
	in := ` in pool "` + pool + `": `
	t.Run("a clone", func(t *testing.T) {
		create(t, p, "source", rbd.ImageSpec{SizeBytes: 8 << 20})
		if err := p.SetMetadata(t.Context(), "source", map[string]string{"whose": "source's"}); err != nil {
			t.Fatal(err)
		}
		clone(t, p, "source", "clone")
		want := fresh(8 << 20)
		want.Features = []string{rbd.FeatureLayering, rbd.FeatureOperations}
		// Ceph copies the metadata.
		want.Metadata = map[string]string{"whose": "source's"}
		want.Parent = imageID(t, p, "source")
		if diff := cmp.Diff(want, describe(t, p, "clone")); diff != "" {
			t.Errorf("the clone differs (-want +got):\n%s", diff)
		}
		want.Parent, want.Kept = "", 1
		if diff := cmp.Diff(want, describe(t, p, "source")); diff != "" {
			t.Errorf("the source differs (-want +got):\n%s", diff)
		}
		wantError(t, p.CloneImage(t.Context(), "clone", rbd.CloneSpec{Source: "source", Snapshot: "none"}),
			rbd.ErrImageNotFound, `clone image "clone"`+in)
	})
	t.Run("a name that is taken", func(t *testing.T) {
		create(t, p, "taken-source", rbd.ImageSpec{SizeBytes: 8 << 20})
		create(t, p, "taken", rbd.ImageSpec{SizeBytes: 1 << 20})
		if err := p.SnapshotImage(t.Context(), imageID(t, p, "taken-source"), "a"); err != nil {
			t.Fatal(err)
		}
		wantError(t, p.CloneImage(t.Context(), "taken", rbd.CloneSpec{Source: "taken-source", Snapshot: "a"}),
			rbd.ErrImageExists, `clone image "taken"`+in)
		if diff := cmp.Diff(fresh(1<<20), describe(t, p, "taken")); diff != "" {
			t.Errorf("the image changed (-want +got):\n%s", diff)
		}
	})
	t.Run("no source", func(t *testing.T) {
		wantError(t, p.CloneImage(t.Context(), "of-nobody", rbd.CloneSpec{Source: "nobody", Snapshot: "a"}),
			rbd.ErrImageNotFound, `clone image "of-nobody"`+in)
		for _, spec := range []rbd.CloneSpec{{Source: "source"}, {Snapshot: "a"}, {Source: "a\x00", Snapshot: "a"}} {
			wantError(t, p.CloneImage(t.Context(), "of-nobody", spec), rbd.ErrNotSupported, `clone image "of-nobody"`+in)
		}
	})
	t.Run("with a data pool", func(t *testing.T) {
		create(t, p, "data-source", rbd.ImageSpec{SizeBytes: 8 << 20})
		if err := p.SnapshotImage(t.Context(), imageID(t, p, "data-source"), "a"); err != nil {
			t.Fatal(err)
		}
		if err := p.CloneImage(t.Context(), "data-clone", rbd.CloneSpec{Source: "data-source", Snapshot: "a", DataPool: s.OtherPool}); err != nil {
			t.Fatal(err)
		}
		if got := describe(t, p, "data-clone"); got.DataPool != s.OtherPool {
			t.Errorf("the clone has the data pool %q, want %q", got.DataPool, s.OtherPool)
		}
		wantError(t, p.CloneImage(t.Context(), "no-data", rbd.CloneSpec{Source: "data-source", Snapshot: "a", DataPool: "nowhere"}),
			rbd.ErrPoolNotFound, `clone image "no-data"`+in)
	})
	t.Run("a clone that grows", func(t *testing.T) {
		create(t, p, "grow-source", rbd.ImageSpec{SizeBytes: 8 << 20})
		clone(t, p, "grow-source", "grown")
		if err := p.GrowImage(t.Context(), "grown", 16<<20); err != nil {
			t.Fatal(err)
		}
		if got := describe(t, p, "grown"); got.SizeBytes != 16<<20 || got.Parent == "" {
			t.Errorf("got %+v", got)
		}
		if got := describe(t, p, "grow-source").SizeBytes; got != 8<<20 {
			t.Errorf("the source has %d bytes", got)
		}
	})
}

// testClonesGo removes sources and clones in either order: nothing is left.
func (s suite) testClonesGo(t *testing.T) {
	t.Parallel()
	const pool = "clones-go"
	s.AddPool(t, pool)
	p := s.open(t, s.Admin, pool)
	t.Run("the clone first", func(t *testing.T) {
		create(t, p, "a", rbd.ImageSpec{SizeBytes: 8 << 20})
		clone(t, p, "a", "a-clone")
		remove(t, p, "a-clone")
		// The snapshot has gone with the clone.
		if got := describe(t, p, "a"); got.Kept != 0 {
			t.Errorf("%d snapshots are kept for no clone", got.Kept)
		}
		remove(t, p, "a")
	})
	t.Run("the source first", func(t *testing.T) {
		create(t, p, "b", rbd.ImageSpec{SizeBytes: 8 << 20})
		clone(t, p, "b", "b-clone")
		wantError(t, p.RemoveImage(t.Context(), "b"), rbd.ErrImageHasSnapshots, `remove image "b"`)
		describe(t, p, "b") // b stays
		id := trash(t, p, "b")
		wantError(t, p.RemoveTrashed(t.Context(), id), rbd.ErrImageHasSnapshots, `remove image "`+id+`" in the trash`)
		if got := describe(t, p, "b-clone"); got.Parent != id {
			t.Errorf("the clone depends on %q, want %q in the trash", got.Parent, id)
		}
		if depth, err := p.CloneDepth(t.Context(), "b-clone"); depth != 1 || err != nil {
			t.Errorf("got depth %d, error %v", depth, err)
		}
		remove(t, p, "b-clone")
		if err := p.RemoveTrashed(t.Context(), id); err != nil {
			t.Errorf("remove the source once its clone is gone: %v", err)
		}
	})
	t.Run("flattened", func(t *testing.T) {
		create(t, p, "c", rbd.ImageSpec{SizeBytes: 8 << 20})
		s.Write(t, pool, "c")
		clone(t, p, "c", "c-clone")
		wantWritten := func(want bool) {
			t.Helper()
			if written, err := p.Written(t.Context(), "c-clone"); err != nil || written != want {
				t.Errorf("that the clone was written to is %v, error %v; want %v", written, err, want)
			}
		}
		wantWritten(false) // its data is its source's
		id := trash(t, p, "c")
		for range 2 { // The second time, there is nothing to do.
			if err := p.FlattenImage(t.Context(), "c-clone"); err != nil {
				t.Fatal(err)
			}
		}
		if got := describe(t, p, "c-clone"); got.Parent != "" || !slices.Equal(got.Features, []string{rbd.FeatureLayering}) {
			t.Errorf("after the flattening, the image is %+v", got)
		}
		if err := p.RemoveTrashed(t.Context(), id); err != nil {
			t.Errorf("remove the source once its clone is flattened: %v", err)
		}
		wantWritten(true)
	})
	t.Run("a chain", func(t *testing.T) {
		create(t, p, "chain-0", rbd.ImageSpec{SizeBytes: 8 << 20})
		clone(t, p, "chain-0", "chain-1")
		clone(t, p, "chain-1", "chain-2")
		for name, want := range map[string]int{"chain-0": 0, "chain-1": 1, "chain-2": 2} {
			if depth, err := p.CloneDepth(t.Context(), name); depth != want || err != nil {
				t.Errorf("%s: got depth %d, error %v; want %d", name, depth, err, want)
			}
		}
		// The flattened image still depends on its parent, because of its own clone.
		if err := p.FlattenImage(t.Context(), "chain-1"); err != nil {
			t.Fatal(err)
		}
		if got := describe(t, p, "chain-0"); got.Kept != 1 {
			t.Errorf("%d snapshots are kept for the clone of a clone that was flattened", got.Kept)
		}
		if depth, err := p.CloneDepth(t.Context(), "chain-2"); depth != 2 || err != nil {
			t.Errorf("the clone of a clone that was flattened has depth %d, error %v", depth, err)
		}
		first, second := trash(t, p, "chain-0"), trash(t, p, "chain-1")
		remove(t, p, "chain-2")
		for _, id := range []string{second, first} {
			if err := p.RemoveTrashed(t.Context(), id); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("no image", func(t *testing.T) {
		in := ` image "nobody" in pool "` + pool + `": `
		wantError(t, p.FlattenImage(t.Context(), "nobody"), rbd.ErrImageNotFound, "flatten"+in)
		_, err := p.CloneDepth(t.Context(), "nobody")
		wantError(t, err, rbd.ErrImageNotFound, "look for the parents of"+in)
	})
	if left := s.Trash(t, pool); len(left) > 0 {
		t.Errorf("left in the trash: %q", left)
	}
}
