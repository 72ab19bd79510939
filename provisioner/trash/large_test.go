// SPDX-License-Identifier: Apache-2.0

package trash_test

import (
	"errors"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/work"
)

// trashLarge puts an image of 100 PiB into the trash, and returns its ID.
func (w *world) trashLarge(t *testing.T, name string) (id string) {
	t.Helper()
	return w.trashOf(t, name, 100<<50)
}

func (w *world) trashOf(t *testing.T, name string, size uint64) (id string) {
	t.Helper()
	w.mustInPool(t, testPool, func(pool *access.Pool) error {
		return pool.CreateImage(t.Context(), name, rbd.ImageSpec{SizeBytes: size})
	})
	return w.trash(t, name, 0)
}

// trashSmall puts small images into the trash.
func (w *world) trashSmall(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		w.make(t, name)
		w.trash(t, name, 0)
	}
}

// slow makes the removal of a part, or of a small image, take time in this process.
func (w *world) slow(length time.Duration) {
	for _, call := range []rbdtest.Call{rbdtest.CallShrinkTrashed, rbdtest.CallRemoveTrashed} {
		w.ceph.Fake(rbdtest.FakeFault{Call: call, Before: func() { time.Sleep(length) }, Times: 10_000}) // of the bubble's clock
	}
}

// size returns the size of an image in the trash.
func (w *world) size(t *testing.T, id string) uint64 {
	t.Helper()
	size, there := w.ceph.TrashedSize(testPool, id)
	if !there {
		t.Fatal("the image is not in the trash")
	}
	return size
}

// TestLargeLast: a large image goes in parts, between which small ones go, whoever removes
// those, and however slow Ceph is.
func TestLargeLast(t *testing.T) {
	for name, test := range map[string]struct {
		begin    func(*testing.T, *world)
		bySelf   int
		patience time.Duration
	}{
		"by us":            {func(*testing.T, *world) {}, 3, 10 * time.Second},
		"by the manager":   {func(t *testing.T, w *world) { w.allowManager(t) }, 0, 10 * time.Second},
		"slowly":           {func(_ *testing.T, w *world) { w.slow(10 * time.Second) }, 3, time.Minute},
		"beyond deadlines": {func(_ *testing.T, w *world) { w.slow(20 * time.Second) }, 3, 3 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				test.begin(t, w)
				id := w.trashLarge(t, "large")
				w.pass(time.Minute)
				before := w.size(t, id)
				if before >= 100<<50 {
					t.Error("nothing was removed of the large image")
				}
				w.trashSmall(t, "a", "b", "c")
				w.pass(test.patience / 2)
				checkSame(t, "what the manager has to do", 3-test.bySelf, w.ceph.HandedOver(testPool))
				w.ceph.RunManager()
				w.pass(test.patience / 2)
				w.checkTrash(t, "large")
				w.checkTold(t, 3-test.bySelf, test.bySelf)
				w.checkCounts(t, 1, 0)
				w.pass(time.Minute)
				if left := w.size(t, id); left >= before {
					t.Error("the large image does not shrink any more")
				}
				checkSame(t, "what the log says of it", 1, w.countLog("A large image is removed"))
				w.pass(time.Hour)
				checkSame(t, "what the log says of it after an hour", 2, w.countLog("A large image is removed"))
				w.stop()
				w.pass(time.Minute) // until calls have ended
			})
		})
	}
}

// TestLargeGoes: the last part of a large image goes like a small image, also after a
// restart, and after a crash at any moment.
func TestLargeGoes(t *testing.T) {
	killed := errors.New("killed")
	for name, fault := range map[string]rbdtest.FakeFault{
		"at once":                     {Call: rbdtest.CallWritten},
		"after a part failed":         {Call: rbdtest.CallShrinkTrashed, Err: killed},
		"after a part's answer":       {Call: rbdtest.CallShrinkTrashed, Err: killed, TakesEffect: true},
		"after the last part failed":  {Call: rbdtest.CallRemoveTrashed, Err: killed},
		"after the last part's entry": {Call: rbdtest.CallRemoveTrashed, Err: killed, HalfWay: true},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.ceph.Fake(fault)
				id := w.trashOf(t, testImage, 300<<30)
				w.pass(2 * time.Second)
				w.restart(t)
				if left := w.size(t, id); left >= 300<<30 && fault.Call != rbdtest.CallShrinkTrashed {
					t.Error("nothing was removed of the image")
				}
				w.visit(t)
				w.pass(time.Minute)
				w.checkPurgedBy(t, 0, 1)
			})
		})
	}
}

// TestLargeOnes: of several large images, the smallest one goes first.
func TestLargeOnes(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ids := []string{w.trashLarge(t, "huge"), w.trashOf(t, "middle", 1<<40), w.trashOf(t, "less", 300<<30)}
		w.pass(4 * time.Second)
		w.checkTrash(t, "huge", "less", "middle")
		checkSame(t, "the size of the middle one", uint64(1<<40), w.size(t, ids[1]))
		w.pass(time.Minute)
		w.checkTrash(t, "huge")
	})
}

// TestLargeStays: nothing is removed of a large image that is in use, has snapshots, or that
// another volume names.
func TestLargeStays(t *testing.T) {
	for name, hold := range map[string]func(*testing.T, *world) (release func()){
		"in use": func(_ *testing.T, w *world) func() { return w.watchInTrash() },
		"a snapshot": func(_ *testing.T, w *world) func() {
			w.ceph.AddSnapshot(testPool, testImage, "theirs")
			return nil
		},
		"a volume": func(t *testing.T, w *world) func() {
			if err := w.volumes.Add(w.second()); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := w.volumes.Delete(w.second()); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.mustInPool(t, testPool, func(pool *access.Pool) error {
					return pool.CreateImage(t.Context(), testImage, rbd.ImageSpec{SizeBytes: 300 << 30})
				})
				release := hold(t, w)
				id := w.trash(t, testImage, 0)
				w.trashSmall(t, "a")
				w.pass(10 * time.Minute)
				w.checkTrash(t, testImage)
				checkSame(t, "the size", uint64(300<<30), w.size(t, id))
				if release != nil {
					release()
					w.pass(2 * work.RetryCap)
					w.checkPurged(t)
				}
			})
		})
	}
}

// TestOneFails: an image that can't be removed, whatever the reason, keeps no other one from
// being removed.
func TestOneFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.trashNew(t, 0)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Image: id, Err: rbd.ErrPermissionDenied, Times: 10_000})
		w.trashSmall(t, "a", "b")
		w.pass(10 * time.Second)
		w.checkTrash(t, testImage)
	})
}
