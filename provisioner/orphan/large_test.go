// SPDX-License-Identifier: Apache-2.0

package orphan_test

import (
	"testing"
	"testing/synctest"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestLarge: an image whose removal would take weeks goes to the trash, which removes it in
// parts, also if a process dies meanwhile.
func TestLarge(t *testing.T) {
	for name, fault := range map[string]rbdtest.FakeFault{
		"not":             {},
		"before the move": {Call: rbdtest.CallTrashImage},
		"after the move":  {Call: rbdtest.CallTrashImage, TakesEffect: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				want := w.wanted()
				want.SizeBytes = 100 << 50
				if err := w.make(t, want); err != nil {
					t.Fatal(err)
				}
				found, _ := w.ceph.Image(testPool, want.Image.Name)
				w.dropClaim(t)
				if fault.Call != "" {
					w.restart(t)
					w.ceph.FakeCrash(fault)
					_ = w.visit(t) // it dies
					w.ceph.ClearFaults()
				}
				w.restart(t)
				w.visitAll(t)
				if trash := w.ceph.Trash(testPool); len(trash) != 1 || len(w.ceph.Images(testPool)) != 0 {
					t.Errorf("the trash has %v, the pool %v", trash, w.ceph.Images(testPool))
				}
				w.checkIntents(t)
				for _, r := range w.trashed {
					if r.ID != found.ID || r.Image != want.Image.Name || r.Volume != want.Owner.Volume || r.SizeBytes != want.SizeBytes || r.At.IsZero() || r.Keep != 0 {
						t.Errorf("it noted %+v", r)
					}
				}
			})
		})
	}
	t.Run("up to the limit it is removed at once", func(t *testing.T) {
		w := newWorld(t)
		want := w.wanted()
		want.SizeBytes = image.Large
		if err := w.make(t, want); err != nil {
			t.Fatal(err)
		}
		w.dropClaim(t)
		w.restart(t)
		_ = w.visit(t) // comes again to make sure that it is gone
		if len(w.trashed) != 0 || len(w.ceph.Images(testPool)) != 0 {
			t.Errorf("noted %v, the pool has %v", w.trashed, w.ceph.Images(testPool))
		}
	})
}
