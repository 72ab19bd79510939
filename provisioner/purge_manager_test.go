// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"fmt"
	"strings"
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

// TestPurgeByManager: Ceph's manager removes images where it may be asked.
func TestPurgeByManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		f.trash(t, f.released(t))
		f.purgeFor(t, 30*time.Second)
		checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
		checkSame(t, "what the manager has to do", 1, f.ceph.HandedOver(testPool))
		f.ceph.RunManager()
		f.purgeFor(t, managerLookCap)
		f.checkPurgedBy(t, 1, 0)
		checkSame(t, "what the log says of it", 0, f.countLog(notByManager))
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
				f.purgeFor(t, managerLookCap)
				f.checkPurgedBy(t, 1, 2)
				time.Sleep(time.Hour) // the request that was given up ends
			})
		})
	}
}

// TestPurgeManagerLost: images that a manager took on, and does not get to, are
// removed here in the end: at once where it does not answer any more.
func TestPurgeManagerLost(t *testing.T) {
	for name, test := range map[string]struct {
		after time.Duration
		begin func(f *fixture)
	}{
		"that never works": {managerPatience, func(*fixture) {}},
		"that is gone": {managerLook, func(f *fixture) {
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallHandOverTrashed, Err: rbd.ErrTimeout})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newManagedFixture(t)
				f.trash(t, f.released(t))
				f.purgeFor(t, purgeQuiet+purgeEvery)
				test.begin(f)
				f.purgeFor(t, test.after-2*purgeEvery)
				checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
				f.purgeFor(t, 2*managerLookCap)
				f.checkPurgedBy(t, 0, 1)
			})
		})
	}
}

// TestPurgeManagerFails: what keeps an image from being removed is seen, and told,
// as if it had been tried here first.
func TestPurgeManagerFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		var stop func()
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, TakesEffect: true, Before: func() {
			stop = f.ceph.Watch(testPool, testImage, "10.0.2.1:0/77")
		}})
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

// TestPurgeManagerRestored: an image that somebody restores while the manager can't
// remove it is not told of as removed.
func TestPurgeManagerRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, TakesEffect: true, Before: func() {
			f.ceph.Watch(testPool, testImage, "10.0.2.1:0/77")
		}})
		id := f.trash(t, f.released(t))
		f.purgeFor(t, purgeQuiet+purgeEvery)
		f.ceph.RunManager()
		f.purgeFor(t, time.Minute)
		f.ceph.Restore(testPool, id)
		f.purgeFor(t, 2*purgeRetryCap)
		checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
		checkSame(t, "the notes", nil, f.noted())
		checkSame(t, "the count", 0, f.journals.purged())
	})
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
		f.purgeFor(t, managerLookCap)
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

// TestPurgeManagerList: the manager has only so many images of a pool on its list.
// The others wait for it, unless it does not get on.
func TestPurgeManagerList(t *testing.T) {
	for name, works := range map[string]bool{"that works": true, "that does not": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newManagedFixture(t)
				const more = 10
				f.trashMany(t, managerWidth+more)
				f.purgeFor(t, managerPace/2)
				checkSame(t, "what the manager has to do", managerWidth, f.ceph.HandedOver(testPool))
				checkSame(t, "the images in the trash", managerWidth+more, len(f.ceph.Trash(testPool)))
				if works {
					f.ceph.RunManager()
					f.purgeFor(t, managerPace/2)
					checkSame(t, "what the manager has to do", more, f.ceph.HandedOver(testPool))
					f.ceph.RunManager()
					f.purgeFor(t, managerLookCap)
					f.checkPurgedBy(t, managerWidth+more, 0)
					return
				}
				f.purgeFor(t, managerPace/2+2*purgeEvery)
				checkSame(t, "the images in the trash", managerWidth, len(f.ceph.Trash(testPool)))
				f.purgeFor(t, managerPatience+managerLookCap)
				f.checkPurgedBy(t, 0, managerWidth+more)
			})
		})
	}
}

// TestPurgeUnderLoad: claims that never leave it quiet delay an image by the patience
// for them, and not the manager's list.
func TestPurgeUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newManagedFixture(t)
		const count = 3 * managerWidth
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
		load(2*purgeEvery + count/managerWidth*3*managerLook)
		f.checkPurgedBy(t, count, 0)
	})
}

// trashMany puts images into the trash, with notes, and has a new leader find them.
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
	f.restart(t, false)
	f.newRecovery().round(f.withLog(t.Context()))
}

// TestPurgeManagerLeaseIsLost: who may not lead any more asks no manager.
func TestPurgeManagerLeaseIsLost(t *testing.T) {
	f := newManagedFixture(t)
	f.trash(t, f.released(t))
	f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashed, Before: f.loseLease()})
	f.purgeAll(f.withLog(t.Context()))
	checkSame(t, "what the manager has to do", 0, f.ceph.HandedOver(testPool))
	checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
	checkSame(t, "what the log says of it", 0, f.countLog(notByManager))
}
