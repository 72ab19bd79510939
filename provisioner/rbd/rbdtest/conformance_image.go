// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// fresh is what Image says of a new image.
func fresh(size uint64) rbd.Image {
	return rbd.Image{SizeBytes: size, Features: []string{rbd.FeatureLayering}, Metadata: map[string]string{}}
}

func (s suite) testCreateImage(t *testing.T) {
	t.Parallel()
	p := s.open(t, s.Restricted, s.Pool)
	for name, size := range map[string]uint64{
		"nothing": 0, "a-byte": 1, "a-mebibyte": 1 << 20, "an-object": 4 << 20, "odd": 12_345_678_901, "a-tebibyte": 1 << 40,
	} {
		t.Run(name, func(t *testing.T) {
			create(t, p, "size-"+name, rbd.ImageSpec{SizeBytes: size})
			if diff := cmp.Diff(fresh(size), describe(t, p, "size-"+name)); diff != "" {
				t.Errorf("a new image differs (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("a name that is taken", func(t *testing.T) {
		create(t, p, "taken", rbd.ImageSpec{SizeBytes: 1 << 20})
		for _, size := range []uint64{1 << 20, 2 << 20} {
			err := p.CreateImage(t.Context(), "taken", rbd.ImageSpec{SizeBytes: size})
			wantError(t, err, rbd.ErrImageExists, `create image "taken" in pool "`+s.Pool+`": `)
		}
		if diff := cmp.Diff(fresh(1<<20), describe(t, p, "taken")); diff != "" {
			t.Errorf("the image changed (-want +got):\n%s", diff)
		}
	})
}

func (s suite) testDataPool(t *testing.T) {
	t.Parallel()
	p := s.open(t, s.Admin, s.Pool)
	for _, pool := range []string{s.OtherPool, s.ErasurePool} {
		if pool == "" {
			continue
		}
		t.Run("in "+pool, func(t *testing.T) {
			name := "data-in-" + pool
			create(t, p, name, rbd.ImageSpec{SizeBytes: 1 << 20, DataPool: pool})
			want := fresh(1 << 20)
			want.DataPool = pool
			want.Features = []string{rbd.FeatureDataPool, rbd.FeatureLayering}
			if diff := cmp.Diff(want, describe(t, p, name)); diff != "" {
				t.Errorf("the image differs (-want +got):\n%s", diff)
			}
			remove(t, p, name)
		})
	}
	t.Run("the pool itself", func(t *testing.T) {
		create(t, p, "data-here", rbd.ImageSpec{SizeBytes: 1 << 20, DataPool: s.Pool})
		if diff := cmp.Diff(fresh(1<<20), describe(t, p, "data-here")); diff != "" {
			t.Errorf("the image differs (-want +got):\n%s", diff)
		}
	})
	// After each of these calls, nothing holds the name.
	refused := func(name string, p rbd.Pool, dataPool string, want error) {
		t.Run(name, func(t *testing.T) {
			image := "data-" + strings.ReplaceAll(name, " ", "-")
			err := p.CreateImage(t.Context(), image, rbd.ImageSpec{SizeBytes: 1 << 20, DataPool: dataPool})
			wantError(t, err, want, `create image "`+image+`" in pool "`+s.Pool+`": `)
			if errors.Is(want, rbd.ErrPoolNotFound) && !strings.Contains(err.Error(), `data pool "`+dataPool+`"`) {
				t.Errorf("the error does not name the data pool: %v", err)
			}
			create(t, p, image, rbd.ImageSpec{SizeBytes: 1 << 20})
		})
	}
	refused("a pool that is not there", p, "no-such-pool", rbd.ErrPoolNotFound)
	refused("a pool without permission", s.open(t, s.Restricted, s.Pool), s.OtherPool, rbd.ErrPermissionDenied)
	if s.NoDataPool != "" {
		refused("a pool that is no data pool", p, s.NoDataPool, rbd.ErrNotSupported)
		t.Run("an image in a pool that can't hold one", func(t *testing.T) {
			err := s.open(t, s.Admin, s.NoDataPool).CreateImage(t.Context(), "image", rbd.ImageSpec{SizeBytes: 1 << 20})
			wantError(t, err, rbd.ErrNotSupported, `create image "image" in pool "`+s.NoDataPool+`": `)
		})
	}
}

func (s suite) testMetadata(t *testing.T) {
	t.Parallel()
	p := s.open(t, s.Restricted, s.Pool)
	create(t, p, "metadata", rbd.ImageSpec{SizeBytes: 1 << 20})
	want := map[string]string{}
	for _, entries := range []map[string]string{
		{"claim": "default/one", "empty": ""},
		{},
		nil,
		{"claim": "default/two", "more": strings.Repeat("long ", 4000)},
		{"key with blanks, ü and \n": "värde \"quoted\"\n"},
	} {
		if err := p.SetMetadata(t.Context(), "metadata", entries); err != nil {
			t.Fatal(err)
		}
		maps.Copy(want, entries)
		image := fresh(1 << 20)
		image.Metadata = want
		if diff := cmp.Diff(image, describe(t, p, "metadata")); diff != "" {
			t.Fatalf("the image differs (-want +got):\n%s", diff)
		}
	}
	many := map[string]string{}
	for i := range 100 {
		many[strings.Repeat("k", i+1)] = strings.Repeat("v", i)
	}
	create(t, p, "much-metadata", rbd.ImageSpec{SizeBytes: 1 << 20})
	if err := p.SetMetadata(t.Context(), "much-metadata", many); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(many, describe(t, p, "much-metadata").Metadata); diff != "" {
		t.Errorf("the metadata differs (-want +got):\n%s", diff)
	}
	wantError(t, p.SetMetadata(t.Context(), "no-such-image", want), rbd.ErrImageNotFound,
		`set metadata of image "no-such-image" in pool "`+s.Pool+`": `)
}

func (s suite) testRemoveImage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p := s.open(t, s.Restricted, s.Pool)
	t.Run("an image, and one that is gone", func(t *testing.T) {
		create(t, p, "removed", rbd.ImageSpec{SizeBytes: 1 << 30})
		if err := p.SetMetadata(ctx, "removed", map[string]string{"left": "over"}); err != nil {
			t.Fatal(err)
		}
		remove(t, p, "removed")
		_, err := p.Image(ctx, "removed")
		wantError(t, err, rbd.ErrImageNotFound, `describe image "removed" in pool "`+s.Pool+`": `)
		for range 2 {
			if err := p.RemoveImage(ctx, "removed"); err != nil {
				wantError(t, err, rbd.ErrImageNotFound, `remove image "removed" in pool "`+s.Pool+`": `)
			}
		}
		create(t, p, "removed", rbd.ImageSpec{SizeBytes: 1 << 20})
		if diff := cmp.Diff(fresh(1<<20), describe(t, p, "removed")); diff != "" {
			t.Errorf("an image of a name that was used before differs (-want +got):\n%s", diff)
		}
	})
	t.Run("an image with watchers", func(t *testing.T) {
		create(t, p, "watched", rbd.ImageSpec{SizeBytes: 1 << 20})
		one, stopOne := s.Watch(t, s.Pool, "watched")
		two, stopTwo := s.Watch(t, s.Pool, "watched")
		want := []string{one, two}
		slices.Sort(want)
		// Describing the image, over two connections, adds no watcher.
		for _, p := range []rbd.Pool{p, s.open(t, s.Admin, s.Pool), p} {
			if diff := cmp.Diff(want, describe(t, p, "watched").Watchers); diff != "" {
				t.Errorf("the watchers differ (-want +got):\n%s", diff)
			}
		}
		wantError(t, p.RemoveImage(ctx, "watched"), rbd.ErrImageInUse, `remove image "watched" in pool "`+s.Pool+`": `)
		stopOne()
		if diff := cmp.Diff([]string{two}, describe(t, p, "watched").Watchers); diff != "" {
			t.Errorf("the watchers differ (-want +got):\n%s", diff)
		}
		wantError(t, p.RemoveImage(ctx, "watched"), rbd.ErrImageInUse, `remove image "watched"`)
		stopTwo()
		remove(t, p, "watched")
	})
	t.Run("an image with snapshots", func(t *testing.T) {
		create(t, p, "snapshots", rbd.ImageSpec{SizeBytes: 1 << 20})
		removeTwo := s.Snapshot(t, s.Pool, "snapshots", "two")
		removeOne := s.Snapshot(t, s.Pool, "snapshots", "one")
		if diff := cmp.Diff([]string{"one", "two"}, describe(t, p, "snapshots").Snapshots); diff != "" {
			t.Errorf("the snapshots differ (-want +got):\n%s", diff)
		}
		wantError(t, p.RemoveImage(ctx, "snapshots"), rbd.ErrImageHasSnapshots, `remove image "snapshots" in pool "`+s.Pool+`": `)
		removeOne()
		wantError(t, p.RemoveImage(ctx, "snapshots"), rbd.ErrImageHasSnapshots, `remove image "snapshots"`)
		removeTwo()
		remove(t, p, "snapshots")
	})
}

// testInterruptedRemoval stops a removal half-way: it uses a user who may remove the
// image's header but not its data. Image does not find what is left; RemoveImage must.
func (s suite) testInterruptedRemoval(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	admin, restricted := s.open(t, s.Admin, s.Pool), s.open(t, s.Restricted, s.Pool)
	create(t, admin, "interrupted", rbd.ImageSpec{SizeBytes: 64 << 20, DataPool: s.OtherPool})
	for range 2 {
		wantError(t, restricted.RemoveImage(ctx, "interrupted"), rbd.ErrPermissionDenied, `remove image "interrupted"`)
		if _, err := admin.Image(ctx, "interrupted"); err != nil {
			wantError(t, err, rbd.ErrImageNotFound, `describe image "interrupted"`)
		}
	}
	// Other tests remove images at the same time.
	if trash := s.Trash(t, s.Pool); !slices.Contains(trash, "interrupted") {
		t.Errorf("the trash has %q, want the image: is this still what a cluster does?", trash)
	}
	remove(t, admin, "interrupted")
	if slices.Contains(s.Trash(t, s.Pool), "interrupted") {
		t.Error("the image is still in the trash")
	}
	if err := admin.RemoveImage(ctx, "interrupted"); err != nil {
		wantError(t, err, rbd.ErrImageNotFound, `remove image "interrupted"`)
	}
}

// testFinishRemovals makes an image again after its removal was interrupted: what is left
// of the old one can then be removed without the new one.
func (s suite) testFinishRemovals(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	admin, restricted := s.open(t, s.Admin, s.Pool), s.open(t, s.Restricted, s.Pool)
	spec := rbd.ImageSpec{SizeBytes: 64 << 20, DataPool: s.OtherPool}
	create(t, admin, "again", spec)
	wantError(t, restricted.RemoveImage(ctx, "again"), rbd.ErrPermissionDenied, `remove image "again"`)
	create(t, admin, "again", spec)
	for _, names := range [][]string{nil, {"another"}} {
		if err := admin.FinishRemovals(ctx, names...); err != nil {
			t.Error(err)
		}
	}
	if trash := s.Trash(t, s.Pool); !slices.Contains(trash, "again") {
		t.Errorf("the trash has %q, want the old image: is this still what a cluster does?", trash)
	}
	for range 2 {
		if err := admin.FinishRemovals(ctx, "another", "again"); err != nil {
			t.Error(err)
		}
		if slices.Contains(s.Trash(t, s.Pool), "again") {
			t.Error("the old image is still in the trash")
		}
	}
	if _, err := admin.Image(ctx, "again"); err != nil {
		t.Errorf("the new image: %v", err)
	}
	remove(t, admin, "again")
}

// testRemains checks that remains of an image hold its name until RemoveImage
// clears them.
func (s suite) testRemains(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p := s.open(t, s.Restricted, s.Pool)
	for _, remains := range []Remains{RemainsID, RemainsDirectory, RemainsDirectoryOnly} {
		t.Run(remains.String(), func(t *testing.T) {
			name := "remains-" + strings.ReplaceAll(remains.String(), " ", "-")
			s.AddRemains(t, s.Pool, name, remains)
			_, err := p.Image(ctx, name)
			wantError(t, err, rbd.ErrImageNotFound, `describe image "`+name)
			wantError(t, p.SetMetadata(ctx, name, map[string]string{"a": "b"}), rbd.ErrImageNotFound, `set metadata of image "`+name)
			wantError(t, p.GrowImage(ctx, name, 1), rbd.ErrImageNotFound, `grow image "`+name)
			for range 2 {
				wantError(t, p.CreateImage(ctx, name, rbd.ImageSpec{SizeBytes: 1}), rbd.ErrImageExists, `create image "`+name)
			}
			if err := p.RemoveImage(ctx, name); err != nil {
				wantError(t, err, rbd.ErrImageNotFound, `remove image "`+name)
			}
			create(t, p, name, rbd.ImageSpec{SizeBytes: 1 << 20})
			if diff := cmp.Diff(fresh(1<<20), describe(t, p, name)); diff != "" {
				t.Errorf("the image differs (-want +got):\n%s", diff)
			}
			remove(t, p, name)
		})
	}
	t.Run(RemainsUnlisted.String(), func(t *testing.T) {
		s.AddRemains(t, s.Pool, "unlisted", RemainsUnlisted)
		describe(t, p, "unlisted")
		wantError(t, p.CreateImage(ctx, "unlisted", rbd.ImageSpec{SizeBytes: 1}), rbd.ErrImageExists, `create image "unlisted`)
		if err := p.RemoveImage(ctx, "unlisted"); err != nil {
			wantError(t, err, rbd.ErrImageNotFound, `remove image "unlisted`)
		}
		_, err := p.Image(ctx, "unlisted")
		wantError(t, err, rbd.ErrImageNotFound, `describe image "unlisted`)
		create(t, p, "unlisted", rbd.ImageSpec{SizeBytes: 1 << 20})
		remove(t, p, "unlisted")
	})
}

// testNames checks that no name or text is mistaken for another one.
func (s suite) testNames(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cluster := s.connect(t, s.NewConnector(t), s.Admin)
	p := openPool(t, cluster, s.Pool)
	for _, name := range []string{"", "cut\x00short"} {
		_, err := cluster.OpenPool(ctx, name)
		wantError(t, err, rbd.ErrNotSupported, "open pool ")
		wantError(t, p.CreateImage(ctx, name, rbd.ImageSpec{SizeBytes: 1}), rbd.ErrNotSupported, "create image ")
		_, err = p.Image(ctx, name)
		wantError(t, err, rbd.ErrNotSupported, "describe image ")
		wantError(t, p.SetMetadata(ctx, name, nil), rbd.ErrNotSupported, "set metadata of image ")
		wantError(t, p.GrowImage(ctx, name, 1), rbd.ErrNotSupported, "grow image ")
		wantError(t, p.RemoveImage(ctx, name), rbd.ErrNotSupported, "remove image ")
	}
	create(t, p, "cut", rbd.ImageSpec{SizeBytes: 1 << 20})
	for _, entries := range []map[string]string{{"": "v"}, {"cut\x00short": "v"}, {"k": "cut\x00short"}} {
		wantError(t, p.SetMetadata(ctx, "cut", entries), rbd.ErrNotSupported, `set metadata of image "cut"`)
	}
	if diff := cmp.Diff(fresh(1<<20), describe(t, p, "cut")); diff != "" {
		t.Errorf("the image changed (-want +got):\n%s", diff)
	}

	// The same name in another pool is another image.
	other := openPool(t, cluster, s.OtherPool)
	create(t, other, "cut", rbd.ImageSpec{SizeBytes: 2 << 20})
	remove(t, p, "cut")
	if got := describe(t, other, "cut").SizeBytes; got != 2<<20 {
		t.Errorf("the image of that name in another pool has %d bytes", got)
	}
}
