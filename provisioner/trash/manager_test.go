// SPDX-License-Identifier: Apache-2.0

package trash_test

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	notByManager = "by this process, not by Ceph's manager"
	givenUp      = "Ceph's manager does not remove the images that it accepted"

	// managerTime is how long a manager has for an image, managerStall for one of all that
	// it has, and managerPause for how long it is left alone then.
	managerTime  = 10 * time.Minute
	managerStall = 30 * time.Second
	managerPause = 24 * time.Hour
	// looked is the longest until the first look for an image that the manager accepted.
	looked = soon + 4*time.Second
)

// countAsked counts the requests to the manager from now on.
func (w *world) countAsked() func() int {
	var asked atomic.Int32
	w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Before: func() { asked.Add(1) }, Times: 1000})
	return func() int { return int(asked.Load()) }
}

// passWithOthers lets time pass in which the manager removes other images.
func (w *world) passWithOthers(t *testing.T, length time.Duration) {
	t.Helper()
	for until := time.Now().Add(length); time.Now().Before(until); {
		w.make(t, "other")
		w.trash(t, "other", 0)
		w.pass(10 * time.Second)
		w.ceph.RunManagerFor(testPool, "other")
		w.pass(10 * time.Second)
	}
}

// silenceManager lets the manager answer the next request only after an hour.
func (w *world) silenceManager() {
	w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Before: func() { time.Sleep(time.Hour) }})
}

// TestPurgeByManager: where we may ask Ceph's manager, we ask it for each image, and look for
// the image until the manager has removed it. As long as none goes, each look asks again.
func TestPurgeByManager(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		asked := w.countAsked()
		w.trashNew(t, 0)
		w.pass(managerStall)
		w.checkTrash(t, testImage)
		checkSame(t, "what the manager has to do", 1, w.ceph.HandedOver(testPool))
		w.ceph.RunManager()
		w.pass(managerStall)
		w.checkPurgedBy(t, 1, 0)
		checkSame(t, "the requests", 4, asked()) // after 0, 4, 8 and 16 s
		checkSame(t, "what the log says of it", 0, w.countLog(notByManager, givenUp))
	})
}

// TestPurgeManagerPrompt: we soon notice that the manager has removed an image.
func TestPurgeManagerPrompt(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		w.trashNew(t, 0)
		w.pass(2 * time.Second)
		w.ceph.RunManager()
		w.pass(5 * time.Second)
		w.checkPurgedBy(t, 1, 0)
	})
}

// TestPurgeManagerLooks: we look for an image 4, 8, 16 s after asking the manager, then
// every 15 s, and at no other time, as long as the manager removes others.
func TestPurgeManagerLooks(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		var looks []time.Duration
		id, start := w.trashNew(t, 0), time.Now().Add(time.Second)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashed, Image: id, Times: 1000, Before: func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			looks = append(looks, time.Since(start).Round(time.Second))
		}})
		w.pass(3 * time.Second)
		w.passWithOthers(t, managerTime-20*time.Second)
		s := time.Second
		w.mu.Lock()
		got := slices.Clone(looks)
		w.mu.Unlock()
		want := []time.Duration{0, 4 * s, 8 * s, 16 * s}
		for at := 31 * s; at < managerTime-20*s; at += 15 * s {
			want = append(want, at)
		}
		checkSame(t, "the looks", want, got)
		w.passWithOthers(t, 20*time.Second)
		w.pass(soon)
		w.checkPurgedBy(t, 30, 1)
		checkSame(t, "what the log says of it", 0, w.countLog(notByManager, givenUp))
	})
}

// TestPurgeManagerFails: the log says what keeps the manager from removing an image, and the
// manager stops trying.
func TestPurgeManagerFails(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		stop := w.watchInTrash()
		w.trashNew(t, 0)
		w.pass(2 * time.Second)
		w.ceph.RunManager()
		w.pass(2 * looked)
		checkSame(t, "what the manager has to do", 0, w.ceph.HandedOver(testPool))
		checkSame(t, "what the log says of it", 1, w.countLog("stays in the trash for now"))
		w.pass(20 * time.Minute)
		checkSame(t, "what the manager has to do", 0, w.ceph.HandedOver(testPool))
		checkSame(t, "what the log says of it", 1, w.countLog("stays in the trash for now", givenUp))
		stop()
		w.pass(2 * work.RetryCap)
		w.checkPurgedBy(t, 0, 1)
	})
}

// TestPurgeManagerSlow: an image that the manager needs long for is left to it. Here it
// can't be removed meanwhile, since the manager has it open.
func TestPurgeManagerSlow(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		stop := w.watchInTrash()
		w.trashNew(t, 0)
		w.passWithOthers(t, managerTime+5*time.Minute)
		w.checkTrash(t, testImage)
		checkSame(t, "what the log says of it", 0, w.countLog("stays in the trash for now"))
		stop()
		w.ceph.RunManager()
		w.pass(work.RetryCap)
		w.checkPurgedBy(t, 46, 0)
	})
}

// TestPurgeManagerRestored: an image that somebody restores while the manager can't
// remove it does not count as removed.
func TestPurgeManagerRestored(t *testing.T) {
	for name, after := range map[string]time.Duration{
		"soon": time.Minute, "when it was tried here": 2 * managerTime,
	} {
		t.Run(name, func(t *testing.T) {
			inManagedWorld(t, func(t *testing.T, w *world) {
				w.watchInTrash()
				id := w.trashNew(t, 0)
				w.pass(2 * time.Second)
				w.ceph.RunManager()
				w.pass(after)
				w.ceph.Restore(testPool, id)
				w.pass(managerTime)
				checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
				checkSame(t, "the notes", nil, w.noted())
				w.checkTold(t, 0, 0)
			})
		})
	}
}

// TestPurgeManagerThrownAway: an image that somebody restores and throws away by hand,
// after we asked the manager for it, does not count as removed.
func TestPurgeManagerThrownAway(t *testing.T) {
	for name, test := range map[string]struct{ restored, thrown time.Duration }{ // after 580 s
		"which is seen": {0, 2 * time.Minute}, "between two looks": {20*time.Second + 100*time.Millisecond, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			inManagedWorld(t, func(t *testing.T, w *world) {
				id := w.trashNew(t, 0)
				w.passWithOthers(t, managerTime-20*time.Second)
				w.pass(test.restored)
				w.ceph.Restore(testPool, id)
				w.pass(test.thrown)
				w.trashByHand(t, testImage)
				w.pass(managerTime)
				w.checkTrash(t, testImage)
				checkSame(t, "the notes", nil, w.noted())
				w.checkTold(t, 29, 0)
			})
		})
	}
}

// TestPurgeManagerMoving: we do not leave an image whose move to the trash was cut off to
// the manager, which can't remove it.
func TestPurgeManagerMoving(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		w.make(t, testImage)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, Err: errors.New("killed"), HalfWay: true})
		if err := w.inPool(t, testPool, func(pool *access.Pool) error { return w.remove(t, pool, testImage, 0) }); err == nil {
			t.Error("it was moved")
		}
		w.visit(t)
		w.pass(soon)
		w.checkPurgedBy(t, 0, 1)
	})
}

// TestPurgeManagerDeniesAgain: the log also says that a manager denies a second time.
func TestPurgeManagerDeniesAgain(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		for i := range 2 {
			w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Err: rbd.ErrPermissionDenied})
			w.trashNew(t, 0)
			w.pass(soon)
			w.checkPurgedBy(t, i, i+1)
			checkSame(t, "what the log says of it", i+1, w.countLog(notByManager))
			w.pass(managerTime)
			w.trashNew(t, 0)
			w.pass(2 * time.Second)
			w.ceph.RunManager()
			w.pass(looked)
		}
		w.checkPurgedBy(t, 2, 2)
		checkSame(t, "the remedy", 2, w.countLog("the cap mgr 'profile rbd' allows it"))
	})
}

// TestPurgeManagerKept: we do not ask the manager for images before they are due.
func TestPurgeManagerKept(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		w.trashNew(t, 24*time.Hour)
		w.pass(24*time.Hour - time.Second)
		checkSame(t, "what the manager has to do", 0, w.ceph.HandedOver(testPool))
		w.pass(soon)
		w.ceph.RunManager()
		w.pass(looked)
		w.checkPurgedBy(t, 1, 0)
	})
}

// TestPurgeManagerAfterCrash: the next leader goes on with images for which an earlier one
// asked the manager, whether or not the manager has removed them.
func TestPurgeManagerAfterCrash(t *testing.T) {
	for name, worked := range map[string]bool{"before it worked": false, "after it worked": true} {
		t.Run(name, func(t *testing.T) {
			inManagedWorld(t, func(t *testing.T, w *world) {
				w.trashNew(t, 0)
				w.pass(2 * time.Second)
				if worked {
					w.ceph.RunManager()
				}
				w.restart(t)
				w.visit(t)
				w.pass(2 * time.Second)
				w.ceph.RunManager()
				w.pass(2 * time.Minute)
				w.checkPurged(t)
			})
		})
	}
}

// TestPurgeManagerMany: we ask the manager once for each of many images, and only for one of
// them again at each look; we remove them if none goes.
func TestPurgeManagerMany(t *testing.T) {
	for name, works := range map[string]bool{"that works": true, "that does not": false} {
		t.Run(name, func(t *testing.T) {
			inManagedWorld(t, func(t *testing.T, w *world) {
				asked := w.countAsked()
				const count = 100
				w.trashMany(t, count)
				w.pass(20 * time.Second)
				checkSame(t, "what the manager has to do", count, w.ceph.HandedOver(testPool))
				if works {
					w.ceph.RunManager()
				}
				w.pass(managerStall + soon)
				if works {
					w.checkPurgedBy(t, count, 0)
				} else {
					w.checkPurgedBy(t, 0, count)
				}
				checkSame(t, "the requests", count+3, asked()) // after 4, 8 and 16 s
			})
		})
	}
}

// TestPurgeUnderLoad: a steady stream of claims delays images by ten seconds only.
func TestPurgeUnderLoad(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		const count = 100
		end := w.begin()
		w.trashMany(t, count)
		load := func(length time.Duration) {
			for until := time.Now().Add(length); time.Now().Before(until); {
				next := w.begin()
				end()
				end = next
				w.pass(time.Second)
				w.ceph.RunManager()
			}
		}
		load(8 * time.Second)
		checkSame(t, "the images in the trash", count, len(w.ceph.Trash(testPool)))
		// We ask for them after ten seconds, and look for them four seconds later, which
		// gives way to claims, too.
		load(18*time.Second + soon)
		w.checkPurgedBy(t, count, 0)
		end()
	})
}

// TestPurgeManagerLeaseIsLost: a replica that may not lead any more asks no manager.
func TestPurgeManagerLeaseIsLost(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashed, Before: func() { w.leaseLost.Store(true) }})
		w.trashNew(t, 0)
		w.pass(time.Minute)
		checkSame(t, "what the manager has to do", 0, w.ceph.HandedOver(testPool))
		w.checkTrash(t, testImage)
		checkSame(t, "what the log says of it", 0, w.countLog(notByManager))
	})
}
