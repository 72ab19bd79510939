// SPDX-License-Identifier: Apache-2.0

package trash_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/trash"
	"ceph.com/rbd-provisioner/provisioner/work"
)

func TestNew(t *testing.T) {
	if _, err := trash.New(trash.Config{}); err == nil {
		t.Error("it needs nothing")
	}
}

func TestPurge(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.trashNew(t, 0)
		checkSame(t, "the notes", []string{id}, w.noted())
		w.checkCounts(t, 1, 0)
		w.pass(soon)
		w.checkPurgedBy(t, 0, 1)
		checkSame(t, "the log of it", 1, w.countLog("Image removed from the trash"))
	})
}

// TestPurgeAfterCrash: wherever a process dies, the next one leaves nothing behind, and
// loses nothing.
func TestPurgeAfterCrash(t *testing.T) {
	killed := errors.New("killed")
	for call, moments := range map[rbdtest.Call]string{
		rbdtest.CallSetNotes:      "before, after", // it is atomic, like RemoveNotes
		rbdtest.CallTrashImage:    "before, half-way, after",
		rbdtest.CallTrashed:       "before", // it only reads
		rbdtest.CallRemoveTrashed: "before, half-way, after",
		rbdtest.CallRemoveNotes:   "before, after",
	} {
		for how := range strings.SplitSeq(moments, ", ") {
			fault := rbdtest.FakeFault{Call: call, Err: killed, TakesEffect: how == "after", HalfWay: how == "half-way"}
			t.Run(string(call)+", "+how, func(t *testing.T) {
				inWorld(t, func(t *testing.T, w *world) {
					w.make(t, testImage)
					hit := false
					fault.Before = func() { hit = true }
					w.ceph.Fake(fault)
					remove := func() error {
						return w.inPool(t, testPool, func(pool *access.Pool) error { return w.remove(t, pool, testImage, 0) })
					}
					err := remove()
					if err == nil {
						w.pass(time.Second) // until the Queue makes the call
					}
					w.restart(t)
					if err != nil {
						// The volume is still there, so the library deletes it again, here
						// only after the notes were taken up.
						w.visit(t)
						w.pass(5 * time.Minute)
						if err := remove(); err != nil {
							t.Fatal(err)
						}
					}
					w.visit(t)
					w.pass(5 * time.Minute)
					w.checkPurged(t)
					if !hit {
						t.Error("the call was not made")
					}
				})
			})
		}
	}
}

// TestNoteStays: an image counts as removed once, however often clearing its note fails.
func TestNoteStays(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveNotes, Err: rbd.ErrPoolFull, Times: 5})
		id := w.trashNew(t, 0)
		w.pass(soon)
		w.checkTrash(t)
		checkSame(t, "the notes", []string{id}, w.noted())
		w.pass(work.RetryCap)
		w.checkPurgedBy(t, 0, 1)
	})
}

func TestTrashRetention(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.trashNew(t, 24*time.Hour)
		for range 2 {
			w.pass(11 * time.Hour)
			w.checkTrash(t, testImage)
			checkSame(t, "the notes", []string{id}, w.noted())
			w.checkCounts(t, 0, 1)
			// The next leader knows it too.
			w.restart(t)
			w.visit(t)
		}
		w.pass(2*time.Hour - time.Second)
		w.checkTrash(t, testImage)
		w.pass(soon)
		w.checkPurged(t)
	})
}

// TestPurgeDeletedAgain: if an image is restored and its volume deleted again, the trash
// keeps the image for as long as the second deletion says.
func TestPurgeDeletedAgain(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.trashNew(t, 24*time.Hour)
		w.pass(time.Hour)
		w.ceph.Restore(testPool, id)
		w.trash(t, testImage, 0)
		w.pass(soon)
		w.checkPurged(t)

		id = w.trashNew(t, 0)
		w.ceph.Restore(testPool, id)
		w.pass(time.Millisecond)
		w.trash(t, testImage, 24*time.Hour)
		w.pass(23 * time.Hour)
		w.checkTrash(t, testImage)
		checkSame(t, "the notes", []string{id}, w.noted())
		w.pass(time.Hour + soon)
		w.checkPurged(t)
	})
}

// TestPurgeDeletedAgainMidway: somebody restores an image that is about to be removed, and
// its volume is deleted again. The note of the second deletion stays.
func TestPurgeDeletedAgainMidway(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.trashNew(t, 0)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Err: rbd.ErrImageNotFound, Before: func() {
			w.ceph.Restore(testPool, id)
			w.trash(t, testImage, time.Hour)
		}})
		w.pass(time.Minute)
		w.checkTrash(t, testImage)
		checkSame(t, "the notes", []string{id}, w.noted())
		w.checkCounts(t, 0, 1)
		w.pass(time.Hour)
		w.checkPurgedBy(t, 0, 1)
	})
}

// TestPurgeLeavesOthers: images without a note stay, and so do those that somebody else put
// into the trash.
func TestPurgeLeavesOthers(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.make(t, "theirs")
		w.trashByHand(t, "theirs")
		id := w.trashNew(t, time.Hour)
		w.pass(30 * time.Minute)
		w.ceph.Restore(testPool, id)
		w.pass(2 * time.Hour)
		checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
		w.checkTrash(t, "theirs")
		checkSame(t, "the notes", nil, w.noted())

		// Restored, and thrown away by hand before the time has passed.
		id = w.trash(t, testImage, time.Hour)
		w.pass(20 * time.Minute)
		w.ceph.Restore(testPool, id)
		w.pass(20 * time.Minute)
		w.trashByHand(t, testImage)
		w.pass(2 * time.Hour)
		w.checkTrash(t, testImage, "theirs")
		checkSame(t, "the notes", nil, w.noted())
		w.checkTold(t, 0, 0)
	})
}

// TestPurgeAbsent: before the note of an absent image is cleared, the image is looked for
// again: the call of a client that died may still put it into the trash.
func TestPurgeAbsent(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.trashNew(t, time.Hour)
		w.ceph.Restore(testPool, id)
		w.pass(time.Hour + 50*time.Second)
		checkSame(t, "the notes", []string{id}, w.noted())
		w.pass(10*time.Second + soon)
		checkSame(t, "the notes", nil, w.noted())
		w.checkCounts(t, 0, 0)

		w.trash(t, testImage, 8*time.Minute)
		w.ceph.Restore(testPool, id)
		w.pass(8*time.Minute + 50*time.Second)
		w.trashByHand(t, testImage) // as late as a move may come
		w.pass(10*time.Second + soon)
		w.checkPurgedBy(t, 0, 1)
	})
}

// TestPurgeLater has an image stay in the trash for a while, for several reasons.
func TestPurgeLater(t *testing.T) {
	for name, begin := range map[string]func(*testing.T, *world) (end func()){
		"a client that mapped it at the last moment": func(_ *testing.T, w *world) func() { return w.watchInTrash() },
		"the key is wrong": func(t *testing.T, w *world) func() {
			key := w.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key
			return func() { w.putKey(t, key) }
		},
		"no monitor answers": func(_ *testing.T, w *world) func() {
			w.ceph.SetUnreachable(true)
			return func() { w.ceph.SetUnreachable(false) }
		},
		"no OSD answers": func(_ *testing.T, w *world) func() {
			w.ceph.Pause()
			return w.ceph.Resume
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				var end func()
				early := strings.Contains(name, "last moment")
				if early {
					end = begin(t, w)
				}
				w.trashNew(t, 0)
				if !early {
					end = begin(t, w)
				}
				w.pass(20 * time.Minute)
				w.checkTrash(t, testImage)
				checkSame(t, "how often the log says it", 1, w.countLog("stays in the trash for now", "could not be removed from the trash, will retry"))
				end()
				w.pass(2 * work.RetryCap)
				w.checkPurged(t)
			})
		})
	}
}

// TestPurgeFails: the log also says that removing images fails a second time; and an image
// with which that fails does not delay other pools.
func TestPurgeFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ceph.AddPool("other")
		for range 2 {
			id := w.trashNew(t, 0)
			w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Image: id, Err: rbd.ErrPermissionDenied, Times: 5})
			w.mustInPool(t, "other", func(pool *access.Pool) error {
				return errors.Join(pool.CreateImage(t.Context(), testImage, rbd.ImageSpec{SizeBytes: 1 << 30}),
					w.remove(t, pool, testImage, 0))
			})
			w.pass(soon)
			w.checkTrash(t, testImage)
			checkSame(t, "the trash of the other pool", nil, w.ceph.Trash("other"))
			w.pass(work.RetryCap)
			w.checkPurged(t)
		}
		checkSame(t, "how often the log says it", 2, w.countLog("could not be removed from the trash, will retry"))
	})
}

// TestPurgeInUseRestored: an image that could not be removed, and that somebody then took
// out of the trash, does not count as removed.
func TestPurgeInUseRestored(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.watchInTrash()
		id := w.trashNew(t, 0)
		w.pass(time.Minute)
		w.ceph.Restore(testPool, id)
		w.pass(2 * work.RetryCap)
		checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
		checkSame(t, "the notes", nil, w.noted())
		w.checkTold(t, 0, 0)
	})
}

// TestPurgeInUseRemoved: an image that could not be removed, and that somebody then
// removed, does not count as removed by us.
func TestPurgeInUseRemoved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		stop := w.watchInTrash()
		id := w.trashNew(t, 0)
		w.pass(time.Minute)
		stop()
		w.mustInPool(t, testPool, func(pool *access.Pool) error { return pool.RemoveTrashed(t.Context(), id) })
		w.pass(2 * work.RetryCap)
		w.checkPurgedBy(t, 0, 0)
	})
}

// TestPurgeGoesOn: the removal of a large image outlives its deadline, and is over by the
// next look at it.
func TestPurgeGoesOn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Err: rbd.ErrTimeout, TakesEffect: true})
		w.trashNew(t, 0)
		w.pass(5 * time.Second)
		w.checkPurgedBy(t, 0, 1)
	})
}

// TestPurgeGoesOnAlone: no other removal in the pool begins while one still runs.
func TestPurgeGoesOnAlone(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.trashNew(t, 0)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Image: id, Err: rbd.ErrTimeout, Times: 20})
		w.pass(time.Millisecond)
		w.make(t, "other")
		w.trash(t, "other", 0)
		w.pass(15 * time.Second)
		w.checkTrash(t, testImage, "other")
		w.pass(10 * time.Second)
		w.checkPurgedBy(t, 0, 2)
	})
}

// TestPurgeOtherVersion: an image whose note is unreadable is left alone.
func TestPurgeOtherVersion(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.trashNew(t, time.Hour)
		w.mustInPool(t, testPool, func(pool *access.Pool) error {
			return pool.SetNotes(t.Context(), w.journal.Removals.Object, map[string][]byte{id: []byte("{}")})
		})
		w.restart(t)
		w.visit(t)
		w.visit(t)
		w.pass(2 * time.Hour)
		w.checkTrash(t, testImage)
		checkSame(t, "what the log says of it", 1, w.countLog("Removals of another version"))
	})
}

// TestVisitFails: if the notes can't be read, a later visit takes them up.
func TestVisitFails(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.trashNew(t, time.Hour)
		w.restart(t)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallNotes, Err: rbd.ErrPermissionDenied})
		err := w.inPool(t, testPool, func(pool *access.Pool) error { return w.Visit(t.Context(), pool) })
		if !errors.Is(err, rbd.ErrPermissionDenied) {
			t.Errorf("got %v", err)
		}
		w.checkCounts(t, 0, 0)
		w.visit(t)
		w.checkCounts(t, 0, 1)
	})
}

// TestPurgeOfAnother: two Kubernetes clusters that share a pool leave each other's trash
// alone.
func TestPurgeOfAnother(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.trashNew(t, time.Hour)
		w.cluster = "cluster-2"
		w.restart(t)
		w.visit(t)
		w.pass(2 * time.Hour)
		w.checkTrash(t, testImage)
	})
}

// TestPurgeOtherCeph: if the monitors belong to another Ceph cluster by now, the image with
// the same ID there stays.
func TestPurgeOtherCeph(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.make(t, testImage)
		found, _ := w.ceph.Image(testPool, testImage)
		w.mustInPool(t, testPool, func(pool *access.Pool) error {
			removal := removalOf(found, testImage)
			pool.ID.FSID = "another"
			w.Add(pool.ID, pool.Location, removal)
			return pool.TrashImage(t.Context(), testImage, 0)
		})
		w.pass(time.Hour)
		w.checkTrash(t, testImage)
		checkSame(t, "what the log says of it", 1, w.countLog("the monitors belong to another Ceph cluster"))
	})
}
