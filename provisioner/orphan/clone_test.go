// SPDX-License-Identifier: Apache-2.0

package orphan_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/orphan"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	cloneImage = "kubernetes-dynamic-pvc-5678"
	// content is what the source has.
	content = "what the source has"
)

// newCloneWorld returns a world with a source, testImage, and a claim that is gone and
// wanted a clone of it.
func newCloneWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.seed(t, testImage, gib, w.wanted().Owner.Marks())
	w.ceph.Fill(testPool, testImage, content)
	return w
}

// clone is the image that the claim wanted, larger than its source.
func (w *world) clone() image.Wanted {
	want := w.wanted()
	want.Image.Name, want.ClaimUID, want.SizeBytes = cloneImage, "5678", 2*gib
	want.Owner.Claim, want.Owner.Volume = "copy", "pvc-5678"
	want.Source = &image.Source{Claim: "data", Volume: testVolume, Image: testImage, FSID: w.ceph.FSID(), CapacityBytes: gib}
	return want
}

// cutOff kills a process while it makes the clone.
func (w *world) cutOff(t *testing.T, fault rbdtest.FakeFault) {
	t.Helper()
	w.ceph.FakeCrash(fault)
	if err := w.make(t, w.clone()); err == nil {
		t.Fatal("it made the clone")
	}
	w.restart(t)
	w.ceph.ClearFaults()
}

// checkNoClone checks that nothing is left of an attempt to make one, and that nothing
// happened to the source.
func (w *world) checkNoClone(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
	checkSame(t, "the remains", nil, w.ceph.Remains(testPool))
	checkSame(t, "the trash", nil, w.ceph.Trash(testPool))
	source, _ := w.ceph.Image(testPool, testImage)
	source.ID = "" // any will do
	checkSame(t, "the source", rbd.Image{SizeBytes: gib, Features: []string{rbd.FeatureLayering}, Metadata: w.wanted().Owner.Marks()}, source)
	checkSame(t, "what the source has", content, w.ceph.Data(testPool, testImage))
}

// TestCloneRemoved kills a process at each moment. The claim is gone when the next process
// starts, which removes everything.
func TestCloneRemoved(t *testing.T) {
	for name, fault := range rbdtest.CloneCrashes(testImage, cloneImage) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCloneWorld(t)
				w.cutOff(t, fault)
				w.visitAll(t)
				w.checkNoClone(t)
				w.checkIntents(t)
			})
		})
	}
}

// TestClonePendingRemoved: a clone that was to be flattened is removed, although it has data.
func TestClonePendingRemoved(t *testing.T) {
	w := newCloneWorld(t)
	pool := w.open(t)
	made, err := image.Maker{Pool: pool, Journal: w.journal, MaxCloneDepth: 0}.Make(t.Context(), w.clone())
	pool.Close()
	if err != nil || !made.Flatten {
		t.Fatalf("got %+v, error %v", made, err)
	}
	w.ceph.Write(testPool, cloneImage) // as flattening does
	w.restart(t)
	w.visitAll(t)
	w.checkNoClone(t)
	w.checkIntents(t)
	checkSame(t, "the outcomes", []orphan.Outcome{orphan.OutcomeRemoved}, w.counted())
}

// TestCloneWithDataStays: a clone into which somebody has written stays.
func TestCloneWithDataStays(t *testing.T) {
	w := newCloneWorld(t)
	if err := w.make(t, w.clone()); err != nil {
		t.Fatal(err)
	}
	w.ceph.Write(testPool, cloneImage)
	w.restart(t)
	checkSame(t, "the visits", 1, w.visitAll(t))
	checkSame(t, "the images", []string{testImage, cloneImage}, w.ceph.Images(testPool))
	w.checkIntents(t)
	checkSame(t, "the outcomes", []orphan.Outcome{orphan.OutcomeForeign}, w.counted())
}

// TestCloneHalfMade: what librbd leaves when it is killed in the middle of a clone is
// removed.
func TestCloneHalfMade(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, *world){
		"the snapshot does not know of it": func(_ *testing.T, w *world) { w.ceph.HalfClone(testPool, testImage, cloneImage) },
		"it does not know its parent":      func(t *testing.T, w *world) { w.seed(t, cloneImage, gib, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newCloneWorld(t)
				w.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCloneImage})
				leave(t, w)
				w.visitAll(t)
				w.checkNoClone(t)
				w.checkIntents(t)
			})
		})
	}
}

// TestCloneOfSourceThatGrew grows the source after it was looked at and before its snapshot
// is made.
func TestCloneOfSourceThatGrew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloneWorld(t)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSnapshotImage, Before: func() {
			pool := w.open(t)
			defer pool.Close()
			if err := pool.GrowImage(t.Context(), testImage, 4*gib); err != nil {
				t.Error(err)
			}
		}})
		w.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot})
		w.visitAll(t)
		checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
		w.checkIntents(t)
	})
}

// TestCloneSnapshotFirst: an intent stays as long as the source has the snapshot, because
// nothing else leads to that.
func TestCloneSnapshotFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloneWorld(t)
		w.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot})
		const times = 5
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot, Err: errors.New("not now"), Times: times})
		// The first visit removes the image, the others wait to be sure that it stays away.
		for range times + 1 {
			if err := w.visit(t); !errors.Is(err, pools.ErrLeft) {
				t.Errorf("got %v, want %v", err, pools.ErrLeft)
			}
			w.checkIntents(t, cloneImage)
			time.Sleep(2 * absentFor) // of the bubble's clock
		}
		w.visitAll(t)
		w.checkNoClone(t)
		w.checkIntents(t)
		checkSame(t, "the outcomes", []orphan.Outcome{orphan.OutcomeRemoved}, w.counted())
	})
}

// TestCloneSourceGone: the source is gone, the clone that was made of it is not.
func TestCloneSourceGone(t *testing.T) {
	w := newCloneWorld(t)
	in := journal.Intent{
		Image: cloneImage, Namespace: "apps", Claim: "copy", ClaimUID: "5678", Volume: "pvc-5678", SizeBytes: 2 * gib,
		SourceID: "gone", SourceVolume: "pvc-gone",
	}
	w.note(t, in)
	// Somebody has flattened it, say.
	w.seed(t, cloneImage, 2*gib, map[string]string{volume.MetaVolume: "pvc-5678", volume.MetaIdentity: testIdentity})
	w.visitAll(t)
	w.checkNoClone(t)
	w.checkIntents(t)
}
