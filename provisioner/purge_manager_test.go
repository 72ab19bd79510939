// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

const notByManager = "by this process, not by Ceph's manager"

// newManagedFixture is newFixture with an admin who may ask Ceph's manager.
func newManagedFixture(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t)
	f.allowManager(t)
	return f
}

func (f *fixture) allowManager(t *testing.T) {
	t.Helper()
	f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true, Manager: true}).Key)
}

// checkPurgedBy checks that nothing is left of images that were removed, how many
// of them by the manager, and how many by this process.
func (f *fixture) checkPurgedBy(t *testing.T, manager, self int) {
	t.Helper()
	f.checkPurged(t)
	checkSame(t, "the images that the manager removed", manager, f.journals.purgedBy(ByManager))
	checkSame(t, "the images that were removed here", self, f.journals.purgedBy(ByProvisioner))
}

// countAsked returns how many times the manager was asked for something.
func (f *fixture) countAsked() func() int {
	var asked atomic.Int32
	f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Before: func() { asked.Add(1) }, Times: 1000})
	return func() int { return int(asked.Load()) }
}

// TestPurgeByManager: Ceph's manager removes images where it may be asked, which is
// once for each, and they are looked for until it has.
func TestPurgeByManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		asked := f.countAsked()
		f.trash(t, f.released(t))
		f.purgeFor(t, managerTime/2)
		checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
		checkSame(t, "what the manager has to do", 1, f.ceph.HandedOver(testPool))
		f.ceph.RunManager()
		f.purgeFor(t, managerTime/2)
		f.checkPurgedBy(t, 1, 0)
		checkSame(t, "the requests", 1, asked())
		checkSame(t, "what the log says of it", 0, f.countLog(notByManager))
	})
}

// TestPurgeManagerPrompt: an image that is removed soon is soon told of.
func TestPurgeManagerPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		f.trash(t, f.released(t))
		f.purgeFor(t, purgeQuiet+purgeEvery)
		f.ceph.RunManager()
		f.purgeFor(t, managerLook+purgeEvery)
		f.checkPurgedBy(t, 1, 0)
	})
}

// TestPurgeWithoutManager: where it may not be asked or does not answer, images are
// removed here, at once, and it is not asked for each of them.
func TestPurgeWithoutManager(t *testing.T) {
	for name, begin := range map[string]func(*testing.T, *fixture){
		"without the cap": func(*testing.T, *fixture) {},
		"that does not answer": func(t *testing.T, f *fixture) {
			f.allowManager(t)
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Before: func() { time.Sleep(time.Hour) }})
		},
		"that is too old": func(t *testing.T, f *fixture) {
			f.allowManager(t)
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Err: rbd.ErrNotSupported})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				begin(t, f)
				for range 2 {
					f.trash(t, f.released(t))
					f.purgeFor(t, purgeQuiet+managerWait+2*purgeEvery)
				}
				f.checkPurgedBy(t, 0, 2)
				checkSame(t, "what the log says of it", 1, f.countLog(notByManager))

				// It is asked again after a while.
				f.allowManager(t)
				f.purgeFor(t, managerAgain)
				f.trash(t, f.released(t))
				f.purgeFor(t, purgeQuiet+purgeEvery)
				f.ceph.RunManager()
				f.purgeFor(t, 2*managerLook)
				f.checkPurgedBy(t, 1, 2)
				time.Sleep(time.Hour) // the request that was given up ends
			})
		})
	}
}

// TestPurgeManagerLost: images that a manager took on, and does not get to, are
// removed here in the end: at once where another one shows that it does not answer.
func TestPurgeManagerLost(t *testing.T) {
	t.Run("that never works", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newManagedFixture(t)
			asked := f.countAsked()
			f.trash(t, f.released(t))
			f.purgeFor(t, managerTime)
			checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
			f.purgeFor(t, purgeQuiet+2*purgeEvery)
			f.checkPurgedBy(t, 0, 1)
			checkSame(t, "the requests", 1, asked())
		})
	})
	t.Run("that is gone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newManagedFixture(t)
			f.trash(t, f.released(t))
			f.purgeFor(t, 10*managerLook)
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Before: func() { time.Sleep(time.Hour) }})
			f.trashMany(t, 3)
			f.purgeFor(t, purgeQuiet+managerWait+2*purgeEvery)
			checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
			f.purgeFor(t, 10*managerLook)
			f.checkPurgedBy(t, 0, 4)
			time.Sleep(time.Hour) // the request that was given up ends
		})
	})
}

// TestPurgeManagerFails: what keeps the manager from removing an image is told after a
// while, and the manager is not to try for ever.
func TestPurgeManagerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		stop := f.watchInTrash()
		f.trash(t, f.released(t))
		f.purgeFor(t, purgeQuiet+purgeEvery)
		f.ceph.RunManager()
		f.purgeFor(t, 20*time.Minute)
		checkSame(t, "what the manager has to do", 0, f.ceph.HandedOver(testPool))
		checkSame(t, "what the log says of it", 1, f.countLog("stays in the trash for now"))
		stop()
		f.purgeFor(t, 2*purgeRetryCap)
		f.checkPurgedBy(t, 0, 1)
	})
}

// TestPurgeManagerSlow: an image that the manager needs long for is left to it, though
// its use by the manager keeps it from being removed here.
func TestPurgeManagerSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		stop := f.watchInTrash()
		f.trash(t, f.released(t))
		f.purgeFor(t, 2*managerTime)
		checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
		checkSame(t, "what the log says of it", 0, f.countLog("stays in the trash for now"))
		stop()
		f.ceph.RunManager()
		f.purgeFor(t, purgeRetryCap)
		f.checkPurgedBy(t, 1, 0)
	})
}

// watchInTrash has a client watch the image from when it is moved to the trash, until
// the caller stops it.
func (f *fixture) watchInTrash() (stop func()) {
	var end func()
	f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, TakesEffect: true, Before: func() {
		end = f.ceph.Watch(testPool, testImage, "10.0.2.1:0/77")
	}})
	return func() { end() }
}

// TestPurgeManagerSource: the source of a clone, which the manager could not remove, is
// removed with the last clone, and not as late as the manager tries again.
func TestPurgeManagerSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.allowManager(t)
		time.Sleep(2 * time.Second) // the key is read anew
		clone := f.bind(t, f.mustProvision(t))
		f.release(t, f.source, f.volume)
		f.purgeFor(t, time.Minute)
		f.ceph.RunManager()
		checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
		f.release(t, f.options, clone)
		f.purgeFor(t, purgeQuiet+purgeEvery)
		f.ceph.RunManagerFor(testPool, cloneImage)
		f.purgeFor(t, managerLook+2*purgeEvery)
		f.checkPurgedBy(t, 1, 1)
	})
}

// TestPurgeManagerRestored: an image that somebody restores while the manager can't
// remove it is not told of as removed.
func TestPurgeManagerRestored(t *testing.T) {
	for name, after := range map[string]time.Duration{
		"soon": time.Minute, "when it was tried here": 2 * managerTime,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newManagedFixture(t)
				f.watchInTrash()
				id := f.trash(t, f.released(t))
				f.purgeFor(t, purgeQuiet+purgeEvery)
				f.ceph.RunManager()
				f.purgeFor(t, after)
				f.ceph.Restore(testPool, id)
				f.purgeFor(t, managerTime)
				checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
				checkSame(t, "the notes", nil, f.noted())
				checkSame(t, "the count", 0, f.journals.purged())
			})
		})
	}
}

// TestPurgeManagerKept: the manager is not told of images before their time.
func TestPurgeManagerKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		f.putParameter(t, "trashRetention", "24h")
		f.trash(t, f.released(t))
		f.purgeFor(t, 23*time.Hour)
		checkSame(t, "what the manager has to do", 0, f.ceph.HandedOver(testPool))
		f.purgeFor(t, time.Hour+2*purgeEvery)
		f.ceph.RunManager()
		f.purgeFor(t, 2*managerLook)
		f.checkPurgedBy(t, 1, 0)
	})
}

// TestPurgeManagerAfterCrash: the next leader goes on with what an earlier one had
// asked the manager for, whether it was done or not.
func TestPurgeManagerAfterCrash(t *testing.T) {
	for name, worked := range map[string]bool{"before it worked": false, "after it worked": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newManagedFixture(t)
				f.trash(t, f.released(t))
				f.purgeFor(t, purgeQuiet+purgeEvery)
				if worked {
					f.ceph.RunManager()
				}
				f.restart(t, false)
				f.newRecovery().round(f.withLog(t.Context()))
				f.purgeFor(t, purgeQuiet+purgeEvery)
				f.ceph.RunManager()
				f.purgeFor(t, 2*absentFor)
				f.checkPurged(t)
			})
		})
	}
}

// TestPurgeManagerMany: what the manager is asked for, it is asked for once, however
// long the others take. What it has not got to after a while is removed here.
func TestPurgeManagerMany(t *testing.T) {
	for name, works := range map[string]bool{"that works": true, "that does not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newManagedFixture(t)
				asked := f.countAsked()
				const count = 100
				f.trashMany(t, count)
				f.purgeFor(t, managerTime/2)
				checkSame(t, "what the manager has to do", count, f.ceph.HandedOver(testPool))
				if works {
					f.ceph.RunManager()
				}
				f.purgeFor(t, managerTime/2+purgeQuiet+2*purgeEvery)
				if works {
					f.checkPurgedBy(t, count, 0)
				} else {
					f.checkPurgedBy(t, 0, count)
				}
				checkSame(t, "the requests", count, asked())
			})
		})
	}
}

// TestPurgeUnderLoad: claims that never leave it quiet delay an image by the patience
// for them.
func TestPurgeUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		const count = 100
		f.trashMany(t, count)
		load := func(length time.Duration) {
			for end := time.Now().Add(length); time.Now().Before(end); {
				_, done, err := f.begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				done()
				f.purgeFor(t, purgeEvery)
				f.ceph.RunManager()
			}
		}
		load(purgePatience - 2*purgeEvery)
		checkSame(t, "the images in the trash", count, len(f.ceph.Trash(testPool)))
		load(purgePatience + managerLook + 4*purgeEvery)
		f.checkPurgedBy(t, count, 0)
	})
}

// trashMany puts images into the trash, with notes, and has them found as by a new
// leader.
func (f *fixture) trashMany(t *testing.T, n int) {
	t.Helper()
	pool, err := f.config.Access.Open(t.Context(), f.location(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		name := fmt.Sprintf("%s-%d", strings.TrimSuffix(testImage, "-1234"), i)
		err := pool.CreateImage(t.Context(), name, rbd.ImageSpec{SizeBytes: 1 << 30})
		image, imageErr := pool.Image(t.Context(), name)
		if err := errors.Join(err, imageErr,
			f.removals.Write(t.Context(), pool, journal.Removal{ID: image.ID, Image: name, At: time.Now()}),
			pool.TrashImage(t.Context(), name, 0)); err != nil {
			t.Fatal(err)
		}
	}
	pool.Close()
	f.newRecovery().round(f.withLog(t.Context()))
}

// TestPurgeManagerLeaseIsLost: who may not lead any more asks no manager.
func TestPurgeManagerLeaseIsLost(t *testing.T) {
	f := newManagedFixture(t)
	f.trash(t, f.released(t))
	f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashed, Before: f.loseLease})
	f.purgeAll(f.withLog(t.Context()))
	checkSame(t, "what the manager has to do", 0, f.ceph.HandedOver(testPool))
	checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
	checkSame(t, "what the log says of it", 0, f.countLog(notByManager))
}
