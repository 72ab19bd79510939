// SPDX-License-Identifier: Apache-2.0

package trash_test

import (
	"fmt"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestPurgeWithoutManager: where we may not ask the manager, or it does not answer, we
// remove images ourselves, at once, and do not ask it for each of them.
func TestPurgeWithoutManager(t *testing.T) {
	for name, begin := range map[string]func(*testing.T, *world){
		"without the cap": func(*testing.T, *world) {},
		"that does not answer": func(t *testing.T, w *world) {
			w.allowManager(t)
			w.silenceManager()
		},
		"that is too old": func(t *testing.T, w *world) {
			w.allowManager(t)
			w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Err: rbd.ErrNotSupported})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				begin(t, w)
				for range 2 {
					w.trashNew(t, 0)
					w.pass(soon + 10*time.Second)
				}
				w.checkPurgedBy(t, 0, 2)
				checkSame(t, "what the log says of it", 1, w.countLog(notByManager))

				// We ask it again after a while.
				w.allowManager(t)
				w.pass(managerTime)
				w.trashNew(t, 0)
				w.pass(2 * time.Second)
				w.ceph.RunManager()
				w.pass(looked)
				w.checkPurgedBy(t, 1, 2)
				w.pass(time.Hour) // until the unanswered request ends
			})
		})
	}
}

// TestPurgeManagerLost: a manager that accepted images and then dies, or removes none, gets
// no others for a day, from no pool. They are removed here, soon. The log says so once, and
// again only after the manager has removed one.
func TestPurgeManagerLost(t *testing.T) {
	for name, test := range map[string]struct {
		die  func(*world)
		soon time.Duration // when the images are gone
	}{
		"that never works": {func(*world) {}, managerStall + looked},
		"that dies":        {(*world).silenceManager, 10*time.Second + looked},
	} {
		t.Run(name, func(t *testing.T) {
			inManagedWorld(t, func(t *testing.T, w *world) {
				const other = "other"
				w.ceph.AddPool(other)
				for i := range 2 {
					w.trashNew(t, 0)
					w.pass(2 * time.Second)
					checkSame(t, "what the manager has to do", 1, w.ceph.HandedOver(testPool))
					test.die(w)
					w.pass(test.soon)
					w.checkPurgedBy(t, 0, 3*i+1)

					// Nobody waits for it meanwhile, whatever the pool.
					w.mustInPool(t, other, func(pool *access.Pool) error {
						if err := pool.CreateImage(t.Context(), other, rbd.ImageSpec{SizeBytes: 1 << 30}); err != nil {
							return err
						}
						return w.remove(t, pool, other, 0)
					})
					w.pass(managerPause - time.Hour)
					w.checkTold(t, 0, 3*i+2)
					w.trashNew(t, 0)
					w.pass(soon)
					w.checkPurgedBy(t, 0, 3*i+3)
					w.pass(time.Hour) // until the unanswered request ends
				}
				checkSame(t, "what the log says of it", 1, w.countLog(givenUp))
				checkSame(t, "what else the log says of it", 0, w.countLog(notByManager))
			})
		})
	}
}

// TestPurgeManagerLostAgain: the log says a second time that a manager has failed if it
// worked in between.
func TestPurgeManagerLostAgain(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		for i := range 2 {
			w.trashNew(t, 0)
			w.pass(managerStall + looked)
			w.checkPurgedBy(t, i, i+1)
			checkSame(t, "what the log says of it", i+1, w.countLog(givenUp))
			w.pass(managerPause)
			w.trashNew(t, 0)
			w.pass(2 * time.Second)
			w.ceph.RunManager()
			w.pass(looked)
		}
		w.checkPurgedBy(t, 2, 2)
		checkSame(t, "what the log says of it", 0, w.countLog(notByManager))
	})
}

// TestPurgeManagerDeniesLater: a manager that accepted an image and denies the next has not
// died.
func TestPurgeManagerDeniesLater(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		w.trashNew(t, 0)
		w.pass(2 * time.Second)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Err: rbd.ErrPermissionDenied})
		w.pass(looked)
		w.checkPurgedBy(t, 0, 1)
		checkSame(t, "what the log says of it", 0, w.countLog(givenUp))
		checkSame(t, "what the log says of it", 1, w.countLog(notByManager))
	})
}

// TestPurgeManagerTries: a manager that tries to remove an image in vain works.
func TestPurgeManagerTries(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		defer w.watchInTrash()()
		w.trashNew(t, 0)
		w.pass(2 * time.Second)
		w.ceph.RunManager()
		w.pass(managerStall / 2) // we hear that it failed
		w.make(t, "other")
		w.trash(t, "other", 0)
		w.pass(managerStall * 2 / 3)
		w.ceph.RunManagerFor(testPool, "other")
		w.pass(managerStall)
		w.checkTold(t, 1, 0)
		checkSame(t, "what the log says of it", 0, w.countLog(givenUp))
	})
}

// TestPurgeManagerBatch: a manager that is slowly getting through many images is left to it,
// also when another image has just joined the queue's end.
func TestPurgeManagerBatch(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		const images = 50
		add := func(name string) {
			w.make(t, name)
			w.trash(t, name, 0)
		}
		for i := range images {
			add(fmt.Sprint("early-", i))
		}
		for i := range images {
			w.pass(2 * time.Second)
			w.ceph.RunManagerFor(testPool, fmt.Sprint("early-", i))
			if i == 32 {
				add("late")
			}
		}
		w.ceph.RunManager()
		w.pass(managerStall)
		w.checkPurgedBy(t, images+1, 0)
		checkSame(t, "what the log says of it", 0, w.countLog(givenUp))
	})
}
