// SPDX-License-Identifier: Apache-2.0

package trash_test

import (
	"fmt"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// removalOf returns the note that the deletion of an image's volume would write now.
func removalOf(found rbd.Image, name string) journal.Removal {
	return journal.Removal{ID: found.ID, Image: name, Volume: "pvc-1234", At: time.Now(), Parent: found.Parent}
}

// TestWidth: images are removed one at a time in a pool, and in four pools at a time.
func TestWidth(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const pools, images = 6, 3
		running, most, mostInPool := map[string]int{}, 0, 0
		count := func(pool string, by int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			running[pool] += by
			all := 0
			for _, n := range running {
				all += n
				mostInPool = max(mostInPool, n)
			}
			most = max(most, all)
		}
		for i := range pools {
			pool := fmt.Sprint("pool-", i)
			w.ceph.AddPool(pool)
			for range images {
				w.mustInPool(t, pool, func(open *access.Pool) error {
					if err := open.CreateImage(t.Context(), testImage, rbd.ImageSpec{SizeBytes: 1 << 30}); err != nil {
						return err
					}
					found, _ := w.ceph.Image(pool, testImage)
					w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Image: found.ID, Before: func() {
						count(pool, 1)
						time.Sleep(10 * time.Second) // of the bubble's clock
						count(pool, -1)
					}})
					return w.remove(t, open, testImage, 0)
				})
			}
		}
		w.checkCounts(t, pools*images, 0)
		w.pass(2*images*10*time.Second + soon)
		w.checkPurgedBy(t, 0, pools*images)
		checkSame(t, "the most at a time in a pool", 1, mostInPool)
		checkSame(t, "the most at a time", 4, most)
	})
}

// TestPurgeGivesWay: removals give way to claims and volumes, but not for ever.
func TestPurgeGivesWay(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.trashNew(t, 0)
		defer w.begin()()
		w.pass(9 * time.Second)
		w.checkTrash(t, testImage)
		w.pass(soon)
		w.checkPurged(t)
	})
}

// TestPurgeGivesWayMidway: when claims come while images are removed, the rest of the
// images wait.
func TestPurgeGivesWayMidway(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		var end func()
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Before: func() { end = w.begin() }})
		w.trashMany(t, 3)
		w.pass(9 * time.Second)
		checkSame(t, "the images in the trash", 2, len(w.ceph.Trash(testPool)))
		end()
		w.pass(soon)
		w.checkPurgedBy(t, 0, 3)
	})
}

// TestPurgeWaitsForQuiet: a short gap between two claims of a burst does not count as
// quiet.
func TestPurgeWaitsForQuiet(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.trashNew(t, 0)
		for range 5 {
			w.begin()()
			w.pass(900 * time.Millisecond)
			w.checkTrash(t, testImage)
		}
		w.pass(soon)
		w.checkPurged(t)
	})
}

// trashMany puts images into the trash, with notes, and lets a new leader find them.
func (w *world) trashMany(t *testing.T, n int) {
	t.Helper()
	w.mustInPool(t, testPool, func(pool *access.Pool) error {
		for i := range n {
			name := fmt.Sprint("kubernetes-dynamic-pvc-", i)
			if err := pool.CreateImage(t.Context(), name, rbd.ImageSpec{SizeBytes: 1 << 30}); err != nil {
				return err
			}
			found, _ := w.ceph.Image(testPool, name)
			if err := w.journal.Removals.Write(t.Context(), pool, removalOf(found, name)); err != nil {
				return err
			}
			if err := pool.TrashImage(t.Context(), name, 0); err != nil {
				return err
			}
		}
		return nil
	})
	w.restart(t)
	w.visit(t)
}

// watchInTrash lets a client watch the image from its move to the trash until the caller
// stops that.
func (w *world) watchInTrash() (stop func()) {
	var end func()
	w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, TakesEffect: true, Before: func() {
		end = w.ceph.Watch(testPool, testImage, "10.0.2.1:0/77")
	}})
	return func() { end() }
}

// TestMany removes ten thousand images, as after the end of a large test.
func TestMany(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const count = 10_000
		w.trashMany(t, count)
		w.pass(time.Minute)
		w.checkPurgedBy(t, 0, count)
	})
}
