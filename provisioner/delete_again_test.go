// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

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
		f.pass(t, time.Minute)
		if err := f.remove(t.Context(), t, pv); !errors.Is(err, rbd.ErrUnreachable) {
			t.Errorf("got %v, want that Ceph is asked again", err)
		}
	})
}

// TestDeleteAfterCrash: whatever a process was doing when it died, the next one leaves
// nothing behind and loses nothing.
func TestDeleteAfterCrash(t *testing.T) {
	for call, moments := range map[rbdtest.Call]string{
		rbdtest.CallSetNotes:      "before, after", // one step of one OSD, as RemoveNotes
		rbdtest.CallTrashImage:    "before, half-way, after",
		rbdtest.CallTrashed:       "before", // it only reads
		rbdtest.CallRemoveTrashed: "before, half-way, after",
		rbdtest.CallRemoveNotes:   "before, after",
	} {
		for how := range strings.SplitSeq(moments, ", ") {
			fault := rbdtest.FakeFault{TakesEffect: how == "after", HalfWay: how == "half-way"}
			inBubble(t, string(call)+", "+how, func(t *testing.T) {
				f := newFixture(t)
				pv := f.released(t)
				fault.Call, fault.Err = call, errors.New("killed")
				f.ceph.Fake(fault)
				err := f.remove(t.Context(), t, pv)
				f.restart(t)
				if err != nil {
					// If the volume is still there, the library continues with it,
					// perhaps not at once: then the note is found first.
					f.recoverAll(t)
					f.purgeFor(t, 5*time.Minute)
					if err := f.remove(t.Context(), t, pv); err != nil {
						t.Fatal(err)
					}
				}
				f.recoverAll(t)
				f.purgeFor(t, 5*time.Minute)
				f.checkPurged(t)
			})
		}
	}
}

// TestTrashRetention: the volume says how long its image is to be kept, and so does the
// note of its deletion.
func TestTrashRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.putParameter(t, "trashRetention", "24h")
		pv := f.released(t)
		checkSame(t, "the annotation", "24h0m0s", pv.Annotations[volume.AnnTrashRetention])
		f.putToTrash(t, pv)
		f.restart(t)
		f.recoverAll(t)
		f.purgeFor(t, 23*time.Hour)
		checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
		f.purgeFor(t, 2*time.Hour)
		f.checkPurged(t)
	})
}

// TestDeleteThatHangs: the move to the trash waits for an OSD for longer than any
// deadline, and the process that began it continues. When the move has ended, nothing is
// lost and nothing is left.
func TestDeleteThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		pv := f.released(t)
		if err := f.volumes.Add(pv); err != nil {
			t.Fatal(err)
		}
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, Before: func() { time.Sleep(time.Hour) }})
		if err := f.Delete(f.withLog(t.Context()), pv); !errors.Is(err, rbd.ErrTimeout) {
			t.Fatalf("got %v, want ErrTimeout", err)
		}
		f.begin("pools", f.pools.Run)
		f.begin("trash", f.trash.Run)
		f.pass(t, 50*time.Minute)
		checkSame(t, "the number of notes", 1, len(f.noted()))
		f.pass(t, 50*time.Minute)
		if err := f.Delete(f.withLog(t.Context()), pv); err != nil {
			t.Fatal(err)
		}
		if err := f.volumes.Delete(pv); err != nil {
			t.Fatal(err)
		}
		f.purgeFor(t, 10*time.Minute)
		f.checkPurged(t)
	})
}
