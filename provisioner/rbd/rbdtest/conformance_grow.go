// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

func (s suite) testGrowImage(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p := s.open(t, s.Restricted, s.Pool)
	grow := func(t *testing.T, p rbd.Pool, name string, size uint64) {
		t.Helper()
		if err := p.GrowImage(ctx, name, size); err != nil {
			t.Fatalf("grow image %q: %v", name, err)
		}
	}
	t.Run("again and again, and never smaller", func(t *testing.T) {
		create(t, p, "grow", rbd.ImageSpec{})
		want := fresh(0)
		want.Metadata = map[string]string{"of": "somebody"}
		if err := p.SetMetadata(ctx, "grow", want.Metadata); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct{ size, want uint64 }{
			{0, 0}, {1, 1}, {1 << 20, 1 << 20}, {1 << 20, 1 << 20}, {1<<20 - 1, 1 << 20}, {0, 1 << 20},
			{5 << 20, 5 << 20}, {12_345_678_901, 12_345_678_901}, {1 << 40, 1 << 40}, {1 << 30, 1 << 40},
		} {
			grow(t, p, "grow", step.size)
			want.SizeBytes = step.want
			if diff := cmp.Diff(want, describe(t, p, "grow")); diff != "" {
				t.Errorf("after growing to %d the image differs (-want +got):\n%s", step.size, diff)
			}
		}
	})
	t.Run("one with watchers, snapshots and data", func(t *testing.T) {
		create(t, p, "grow-used", rbd.ImageSpec{SizeBytes: 8 << 20})
		s.Write(t, s.Pool, "grow-used")
		removeSnapshot := s.Snapshot(t, s.Pool, "grow-used", "one")
		_, stop := s.Watch(t, s.Pool, "grow-used")
		grow(t, p, "grow-used", 16<<20)
		got := describe(t, p, "grow-used")
		if got.SizeBytes != 16<<20 || len(got.Watchers) != 1 || len(got.Snapshots) != 1 {
			t.Errorf("got %+v", got)
		}
		if written, err := p.Written(ctx, "grow-used"); err != nil || !written {
			t.Errorf("its data: written is %v, %v", written, err)
		}
		stop()
		removeSnapshot()
		remove(t, p, "grow-used")
	})
	t.Run("one whose data is in another pool", func(t *testing.T) {
		admin := s.open(t, s.Admin, s.Pool)
		create(t, admin, "grow-data", rbd.ImageSpec{SizeBytes: 1 << 20, DataPool: s.OtherPool})
		grow(t, admin, "grow-data", 16<<20)
		if got := describe(t, admin, "grow-data"); got.SizeBytes != 16<<20 || got.DataPool != s.OtherPool {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("by two at once", func(t *testing.T) {
		create(t, p, "grow-both", rbd.ImageSpec{SizeBytes: 1 << 20})
		var both sync.WaitGroup
		for _, p := range []rbd.Pool{p, s.open(t, s.Admin, s.Pool)} {
			for _, size := range []uint64{4 << 20, 8 << 20, 2 << 20} {
				both.Go(func() {
					if err := p.GrowImage(ctx, "grow-both", size); err != nil {
						t.Error(err)
					}
				})
			}
		}
		both.Wait()
		if got := describe(t, p, "grow-both").SizeBytes; got != 8<<20 {
			t.Errorf("the image has %d bytes", got)
		}
	})
	wantError(t, p.GrowImage(ctx, "no-such-image", 1<<20), rbd.ErrImageNotFound,
		`grow image "no-such-image" in pool "`+s.Pool+`": `)
}
