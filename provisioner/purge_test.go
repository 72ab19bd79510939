// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// trash deletes a volume, whose image is then in the trash, and returns the
// image's ID.
func (f *fixture) trash(t *testing.T, pv *corev1.PersistentVolume) (id string) {
	t.Helper()
	image, found := f.ceph.Image(testPool, testImage)
	if !found {
		t.Fatal("there is no image")
	}
	if err := f.Delete(f.withLog(t.Context()), pv); err != nil {
		t.Fatal(err)
	}
	checkSame(t, "the images", nil, f.ceph.Images(testPool))
	checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
	return image.ID
}

// purgeAll removes from the trash what is due, as purgeLoop does.
func (f *fixture) purgeAll(ctx context.Context) {
	f.ended.Store(nil)
	f.purgeRound(ctx)
}

// purgeRound is one round of purgeLoop.
func (f *fixture) purgeRound(ctx context.Context) {
	for place, in := range f.purger.begin(time.Now()) {
		f.purge(ctx, place, in)
		f.purger.end(place)
	}
}

// purgeFor lets time pass while the trash is worked off.
func (f *fixture) purgeFor(t *testing.T, length time.Duration) {
	t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(purgeEvery) {
		f.purgeRound(f.withLog(t.Context()))
	}
	f.checkAfter(t, nil)
}

// noted returns the IDs of the images that are noted to be removed.
func (f *fixture) noted() []string {
	var ids []string
	for id := range f.ceph.Notes(testPool)[f.removals.Object] {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// checkPurged checks that nothing is left of the image, nor of the note of it.
func (f *fixture) checkPurged(t *testing.T) {
	t.Helper()
	f.checkNothing(t)
	checkSame(t, "the notes", nil, f.noted())
	if waiting, kept := f.Trash(); waiting+kept != 0 {
		t.Errorf("%d images wait and %d are kept", waiting, kept)
	}
}

func (f *fixture) countLog(text string) int {
	n := 0
	for _, line := range f.logged() {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func TestPurge(t *testing.T) {
	f := newFixture(t)
	id := f.trash(t, f.released(t))
	checkSame(t, "the notes", []string{id}, f.noted())
	if waiting, kept := f.Trash(); waiting != 1 || kept != 0 {
		t.Errorf("%d images wait and %d are kept", waiting, kept)
	}
	f.purgeAll(f.withLog(t.Context()))
	f.checkPurged(t)
	checkSame(t, "the count", 1, f.journals.purged())
}

// TestDeleteAgain: the library asks again for volumes that it has just deleted.
func TestDeleteAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		pv := f.released(t)
		pv.UID = "9b0c"
		f.checkRemoved(t, pv)
		f.ceph.SetUnreachable(true)
		if err := f.remove(t.Context(), t, pv); err != nil {
			t.Errorf("it asked Ceph again: %v", err)
		}
		time.Sleep(deletedFor)
		if err := f.remove(t.Context(), t, pv); !errors.Is(err, rbd.ErrUnreachable) {
			t.Errorf("got %v, want that Ceph is asked again", err)
		}
	})
}

// TestPurgeAfterCrash: whatever a process that died was in the middle of, the
// next one leaves nothing, and loses nothing.
func TestPurgeAfterCrash(t *testing.T) {
	killed := errors.New("killed")
	for call, moments := range map[rbdtest.Call]string{
		rbdtest.CallSetNotes:      "before, after", // one step of one OSD, as RemoveNotes
		rbdtest.CallTrashImage:    "before, half-way, after",
		rbdtest.CallTrashed:       "before", // it only reads
		rbdtest.CallRemoveTrashed: "before, half-way, after",
		rbdtest.CallRemoveNotes:   "before, after",
	} {
		for how := range strings.SplitSeq(moments, ", ") {
			fault := rbdtest.FakeFault{TakesEffect: how == "after", HalfWay: how == "half-way"}
			t.Run(string(call)+", "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t)
					pv := f.released(t)
					fault.Call, fault.Err = call, killed
					f.ceph.Fake(fault)
					err := f.remove(t.Context(), t, pv)
					f.restart(t, false)
					if err != nil {
						// The volume is still there, so the library goes on with
						// it; or not at once, so recovery comes first.
						f.newRecovery().round(f.withLog(t.Context()))
						f.purgeFor(t, 5*time.Minute)
						if err := f.remove(t.Context(), t, pv); err != nil {
							t.Fatal(err)
						}
					}
					f.newRecovery().round(f.withLog(t.Context()))
					f.purgeFor(t, 5*time.Minute)
					f.checkPurged(t)
				})
			})
		}
	}
}

func TestTrashRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.putParameter(t, "trashRetention", "24h")
		pv := f.released(t)
		checkSame(t, "the annotation", "24h0m0s", pv.Annotations[volume.AnnTrashRetention])
		id := f.trash(t, pv)
		for range 2 {
			f.purgeFor(t, 11*time.Hour)
			checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
			checkSame(t, "the notes", []string{id}, f.noted())
			if waiting, kept := f.Trash(); waiting != 0 || kept != 1 {
				t.Errorf("%d images wait and %d are kept", waiting, kept)
			}
			// The next leader knows it too.
			f.restart(t, false)
			f.newRecovery().round(f.withLog(t.Context()))
		}
		f.purgeFor(t, 3*time.Hour)
		f.checkPurged(t)
	})
}

// TestPurgeRestored: an image that was restored and whose volume is then deleted
// again is kept for as long as that volume says.
func TestPurgeRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		pv := f.released(t)
		pv.Annotations[volume.AnnTrashRetention] = "24h"
		id := f.trash(t, pv)
		f.purgeFor(t, time.Hour)
		f.ceph.Restore(testPool, id)
		delete(pv.Annotations, volume.AnnTrashRetention)
		f.trash(t, pv)
		f.purgeAll(f.withLog(t.Context()))
		f.checkPurged(t)
	})
}

// TestPurgeLeavesOthers: only what is noted is removed, and only what was put into
// the trash by who noted it.
func TestPurgeLeavesOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.seed(t, f.ceph, "theirs", rbd.ImageSpec{SizeBytes: 1 << 20}, nil)
		byHand := func(name string) {
			pool, err := f.config.Access.Open(t.Context(), f.location(t))
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			if err := pool.TrashImage(t.Context(), name, 0); err != nil {
				t.Fatal(err)
			}
		}
		byHand("theirs")
		pv := f.released(t)
		pv.Annotations[volume.AnnTrashRetention] = "1h"
		id := f.trashBeside(t, pv)
		f.purgeFor(t, 30*time.Minute)
		f.ceph.Restore(testPool, id)
		f.purgeFor(t, 2*time.Hour)
		checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
		checkSame(t, "the trash", []string{"theirs"}, f.ceph.Trash(testPool))
		checkSame(t, "the notes", nil, f.noted())

		// Restored, and thrown away by hand before the time has passed.
		id = f.trashBeside(t, pv)
		f.purgeFor(t, 20*time.Minute)
		f.ceph.Restore(testPool, id)
		f.purgeFor(t, 20*time.Minute)
		byHand(testImage)
		f.purgeFor(t, 2*time.Hour)
		checkSame(t, "the trash", []string{testImage, "theirs"}, f.ceph.Trash(testPool))
		checkSame(t, "the notes", nil, f.noted())
	})
}

// trashBeside is trash where the trash holds other images too.
func (f *fixture) trashBeside(t *testing.T, pv *corev1.PersistentVolume) (id string) {
	t.Helper()
	image, _ := f.ceph.Image(testPool, testImage)
	if err := f.Delete(f.withLog(t.Context()), pv); err != nil {
		t.Fatal(err)
	}
	return image.ID
}

// TestPurgeLater is about what keeps an image in the trash for a while.
func TestPurgeLater(t *testing.T) {
	for name, begin := range map[string]func(*testing.T, *fixture) (end func()){
		"a client that mapped it at the last moment": func(_ *testing.T, f *fixture) func() {
			var stop func()
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, TakesEffect: true, Before: func() {
				stop = f.ceph.Watch(testPool, testImage, "10.0.2.1:0/77")
			}})
			return func() { stop() }
		},
		"the key is wrong": func(t *testing.T, f *fixture) func() {
			key := f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key
			return func() { f.putKey(t, "kube-system", "admin", key) }
		},
		"no monitor answers": func(_ *testing.T, f *fixture) func() {
			f.ceph.SetUnreachable(true)
			return func() { f.ceph.SetUnreachable(false) }
		},
		"no OSD answers": func(_ *testing.T, f *fixture) func() {
			f.ceph.Pause()
			return f.ceph.Resume
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				pv := f.released(t)
				var end func()
				early := strings.Contains(name, "last moment")
				if early {
					end = begin(t, f)
				}
				f.trash(t, pv)
				if !early {
					end = begin(t, f)
				}
				f.purgeFor(t, 20*time.Minute)
				checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
				if said := f.countLog("stays in the trash for now") + f.countLog("could not be removed from the trash"); said != 1 {
					t.Errorf("the log says it %d times", said)
				}
				end()
				f.purgeFor(t, 2*purgeRetryCap)
				f.checkPurged(t)
			})
		})
	}
}

// TestPurgeInUseRestored: an image that could not be removed, and that somebody then
// took out of the trash, is not told of as removed.
func TestPurgeInUseRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		pv := f.released(t)
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, TakesEffect: true, Before: func() {
			f.ceph.Watch(testPool, testImage, "10.0.2.1:0/77")
		}})
		id := f.trash(t, pv)
		f.purgeFor(t, time.Minute)
		f.ceph.Restore(testPool, id)
		f.purgeFor(t, 2*purgeRetryCap)
		checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
		checkSame(t, "the notes", nil, f.noted())
		checkSame(t, "the count", 0, f.journals.purged())
	})
}

// TestPurgeGoesOn: the removal of a large image outlives its deadline, and is over
// by the next look at it.
func TestPurgeGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.trash(t, f.released(t))
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Err: rbd.ErrTimeout, TakesEffect: true})
		f.purgeFor(t, 5*time.Second)
		f.checkPurged(t)
		checkSame(t, "the count", 1, f.journals.purged())
	})
}

// TestPurgeGivesWay: what nobody waits for comes after claims and volumes, but not
// for ever.
func TestPurgeGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.trash(t, f.released(t))
		_, end, err := f.begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.purgeFor(t, purgePatience-time.Second)
		checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
		f.purgeFor(t, 3*time.Second)
		f.checkPurged(t)
		end()
	})
}

// TestPurgeWaitsForQuiet: between two claims of a burst there may be none for a
// moment.
func TestPurgeWaitsForQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.trash(t, f.released(t))
		for range 5 {
			_, end, err := f.begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			end()
			f.purgeFor(t, purgeQuiet)
			checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
		}
		f.purgeFor(t, purgeQuiet)
		f.checkPurged(t)
	})
}

// TestPurgeOtherVersion: a note that can't be read is nobody's.
func TestPurgeOtherVersion(t *testing.T) {
	f := newFixture(t)
	id := f.trash(t, f.released(t))
	pool, err := f.config.Access.Open(t.Context(), f.location(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := pool.SetNotes(t.Context(), f.removals.Object, map[string][]byte{id: []byte("{}")}); err != nil {
		t.Fatal(err)
	}
	pool.Close()
	f.restart(t, false)
	f.newRecovery().round(f.withLog(t.Context()))
	f.purgeAll(f.withLog(t.Context()))
	checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
	checkSame(t, "what the log says of it", 1, f.countLog("Removals of another version"))
}

// TestPurgeOfAnother: two Kubernetes clusters that share a pool leave each other's
// trash alone.
func TestPurgeOfAnother(t *testing.T) {
	f := newFixture(t)
	f.trash(t, f.released(t))
	f.journals.clusterUID = "cluster-2"
	f.restart(t, false)
	f.newRecovery().round(f.withLog(t.Context()))
	f.purgeAll(f.withLog(t.Context()))
	checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
	if got, want := f.removals.Object, journal.RemovalsObject("cluster-2", DefaultName, testIdentity); got != want {
		t.Errorf("removals are in %q, want %q", got, want)
	}
}
