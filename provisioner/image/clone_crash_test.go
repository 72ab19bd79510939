// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"errors"
	"strings"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// TestCloneCutOff kills a process at each moment; the next process makes the clone.
func TestCloneCutOff(t *testing.T) {
	for name, fault := range rbdtest.CloneCrashes(testImage, cloneImage) {
		t.Run(name, func(t *testing.T) {
			w := newCloneWorld(t)
			w.cutOff(t, fault)
			w.checkMakes(t)
			w.checkClone(t)
			w.checkIntents(t, cloneImage)
		})
	}
}

// TestCloneCutOffTwice kills two processes, each at each moment; the third one makes the
// clone. If the second process does not reach its moment, it has made the clone.
func TestCloneCutOffTwice(t *testing.T) {
	crashes := rbdtest.CloneCrashes(testImage, cloneImage)
	// Moments that only a second process reaches.
	second := rbdtest.CloneCrashes(testImage, cloneImage)
	second["before it is known to be whole"] = rbdtest.FakeFault{Call: rbdtest.CallHasClone}
	second["before what is half-made goes"] = rbdtest.FakeFault{Call: rbdtest.CallRemoveImage}
	second["while what is half-made goes"] = rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, HalfWay: true}
	second["after what is half-made has gone"] = rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, TakesEffect: true}
	for name, fault := range crashes {
		for again, next := range second {
			t.Run(name+", "+again, func(t *testing.T) {
				w := newCloneWorld(t)
				w.cutOff(t, fault)
				w.ceph.FakeCrash(next)
				if _, err := w.Make(t.Context(), w.want); err != nil && !errors.Is(err, rbdtest.ErrKilled) {
					t.Errorf("got %v", err)
				}
				w.ceph.ClearFaults()
				w.checkMakes(t)
				// What a removal that was cut off left goes when the intent does.
				if err := w.Journal.Settle(t.Context(), w.Pool, w.want.Image.PoolID, cloneImage); err != nil {
					t.Error(err)
				}
				w.checkClone(t)
				w.checkIntents(t)
			})
		}
	}
}

// TestCloneDiscarded kills a process at each moment, and the claim is gone when the next
// one comes. Nothing is left but the snapshot, which the intent names.
func TestCloneDiscarded(t *testing.T) {
	for name, fault := range rbdtest.CloneCrashes(testImage, cloneImage) {
		t.Run(name, func(t *testing.T) {
			w := newCloneWorld(t)
			w.cutOff(t, fault)
			in, err := w.Journal.Intents.Of(t.Context(), w.Pool, cloneImage)
			if err != nil {
				t.Fatal(err)
			}
			if fate, reason, err := w.discard(t); fate != image.Removed && fate != image.Absent || err != nil {
				t.Errorf("got %s, %q, error %v", fate, reason, err)
			}
			if in.SourceID != "" {
				if err := w.Pool.RemoveSnapshot(t.Context(), in.SourceID, image.CloneSnapshot(in.ClaimUID)); err != nil {
					t.Error(err)
				}
			}
			w.checkNoClone(t)
		})
	}
}

// TestCloneFind: a claim was deleted while its clone was made. If the clone was made, it
// is found; otherwise nothing is.
func TestCloneFind(t *testing.T) {
	for name, fault := range rbdtest.CloneCrashes(testImage, cloneImage) {
		t.Run(name, func(t *testing.T) {
			w := newCloneWorld(t)
			w.cutOff(t, fault)
			before, there := w.ceph.Image(testPool, cloneImage)
			want := there && before.Metadata[volume.MetaVolume] == "pvc-5678"
			// At that point, nothing reads the source any more.
			w.want.Source = &image.Source{Claim: "data"}
			for range 2 {
				made, found, err := w.Find(t.Context(), w.want)
				if err != nil || found != want {
					t.Fatalf("found %v, error %v; want %v", found, err, want)
				}
				if found {
					checkSame(t, "what was made", w.made(), made)
					w.checkClone(t)
					w.checkIntents(t, cloneImage)
					continue
				}
				after, _ := w.ceph.Image(testPool, cloneImage)
				checkSame(t, "the image", before, after)
			}
		})
	}
}

// TestCloneHalfMade: what librbd leaves when it is killed while it clones is removed,
// whether the claim still wants the clone or not.
func TestCloneHalfMade(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, *cloneWorld){
		"the snapshot does not know of it": func(_ *testing.T, w *cloneWorld) { w.ceph.HalfClone(testPool, testImage, cloneImage) },
		"it does not know its parent": func(t *testing.T, w *cloneWorld) {
			w.seed(t, cloneImage, rbd.ImageSpec{SizeBytes: gib}, nil)
		},
		"it can't be opened": func(_ *testing.T, w *cloneWorld) { w.ceph.AddRemains(testPool, cloneImage, rbdtest.RemainsDirectory) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newCloneWorld(t)
			w.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCloneImage})
			leave(t, w)
			w.checkMakes(t)
			w.checkClone(t)
		})
		t.Run(name+", and the claim is gone", func(t *testing.T) {
			w := newCloneWorld(t)
			w.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCloneImage})
			leave(t, w)
			if _, _, err := w.discard(t); err != nil {
				t.Error(err)
			}
			checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
			checkSame(t, "the remains", nil, w.ceph.Remains(testPool))
		})
	}
}

// TestCloneOfSourceThatGrew: the source grew after the snapshot, or after it was looked
// at.
func TestCloneOfSourceThatGrew(t *testing.T) {
	t.Run("a snapshot of before", func(t *testing.T) {
		w := newCloneWorld(t)
		w.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCloneImage}) // for a claim of 2 GiB
		w.grow(t, 2*gib)
		w.mustMake(t)
		got, _ := w.ceph.Image(testPool, cloneImage)
		checkSame(t, "the clone's size", 2*gib, got.SizeBytes)
	})
	t.Run("grown since it was looked at", func(t *testing.T) {
		w := newCloneWorld(t)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSnapshotImage, Before: func() { w.grow(t, 4*gib) }})
		for range 2 {
			if _, err := w.Make(t.Context(), w.want); err == nil || !strings.Contains(err.Error(), "has 4Gi, more than the claim requests") {
				t.Errorf("got %v", err)
			}
			checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
		}
	})
	t.Run("and killed then", func(t *testing.T) {
		w := newCloneWorld(t)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSnapshotImage, Before: func() { w.grow(t, 4*gib) }})
		w.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot})
		if fate, _, err := w.discard(t); fate != image.Removed || err != nil {
			t.Errorf("got %s, error %v", fate, err)
		}
		checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
	})
	t.Run("a clone of before that is too large", func(t *testing.T) {
		w := newCloneWorld(t)
		w.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot})
		w.ceph.FakeImages(func(i *rbd.Image) { // which was larger then
			if i.Parent != "" && i.Metadata[volume.MetaVolume] == "pvc-1234" {
				i.SizeBytes = 3 * gib
				w.ceph.FakeImages(nil)
			}
		})
		w.checkMakes(t)
		w.checkClone(t)
	})
}

// TestCloneSourceMadeAnew: at the next attempt, the source's claim has another volume.
// What was made from the first one is removed.
func TestCloneSourceMadeAnew(t *testing.T) {
	for name, fault := range map[string]rbdtest.FakeFault{
		"a clone": {Call: rbdtest.CallSetMetadata}, "a snapshot": {Call: rbdtest.CallCloneImage},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCloneWorld(t)
			w.cutOff(t, fault)
			w.seed(t, "new", rbd.ImageSpec{SizeBytes: gib}, w.metadataOf("pvc-new"))
			w.wantClone("data", "pvc-new", "new", "5678")
			w.mustMake(t)
			checkSame(t, "the images", []string{testImage, cloneImage, "new"}, w.ceph.Images(testPool))
			source, _ := w.ceph.Image(testPool, "new")
			got, _ := w.ceph.Image(testPool, cloneImage)
			checkSame(t, "the clone's parent", source.ID, got.Parent)
			w.checkSource(t, 0)
		})
	}
}

// TestCloneSourceGone: a finished clone is found, even if its source is gone or another
// image has the source's name. The result describes the source as it was.
func TestCloneSourceGone(t *testing.T) {
	for name, source := range map[string]image.Source{
		"it is gone":     {Claim: "data", Err: errors.New("its source is gone")},
		"it is another":  {Claim: "data", Volume: "pvc-new", Image: "new", FSType: "ext4", CapacityBytes: 5},
		"nobody says it": {Claim: "data"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newCloneWorld(t)
			w.want.SizeBytes = 2 * gib
			w.checkMakes(t)
			if err := w.Pool.TrashImage(t.Context(), testImage, 0); err != nil {
				t.Fatal(err)
			}
			w.want.Source = &source
			checkSame(t, "what was made", w.made(), w.mustMake(t))
			made, found, err := w.Find(t.Context(), w.want)
			if err != nil || !found {
				t.Fatalf("found %v, error %v", found, err)
			}
			checkSame(t, "what was found", w.made(), made)
		})
	}
}

// TestCloneSourceForgotten: the process that made the clone kept no journal. The source
// is known for as long as it exists.
func TestCloneSourceForgotten(t *testing.T) {
	w := newCloneWorld(t)
	w.setJournal("")
	w.mustMake(t)
	checkSame(t, "the source", w.want.Source, w.mustMake(t).Source)
	w.want.Source = &image.Source{Claim: "data", Err: errors.New("its source is gone")}
	checkSame(t, "the source", nil, w.mustMake(t).Source)
	made, found, err := w.Find(t.Context(), w.want)
	if err != nil || !found || made.Source != nil {
		t.Errorf("got %+v, found %v, error %v", made, found, err)
	}
	w.checkIntents(t)
}

// TestCloneMarkedByEarlierVersion: an earlier version wrote less metadata; the rest is
// added.
func TestCloneMarkedByEarlierVersion(t *testing.T) {
	w := newCloneWorld(t)
	w.checkMakes(t)
	w.ceph.ClearMetadata(testPool, cloneImage)
	marks := map[string]string{volume.MetaVolume: "pvc-5678", volume.MetaIdentity: testIdentity}
	if err := w.Pool.SetMetadata(t.Context(), cloneImage, marks); err != nil {
		t.Fatal(err)
	}
	w.checkMakes(t)
	w.checkClone(t)
}
