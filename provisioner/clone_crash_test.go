// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// cloneCrashes are the moments at which a process dies that makes a clone that is
// larger than its source.
func cloneCrashes() map[string]rbdtest.FakeFault {
	return map[string]rbdtest.FakeFault{
		"before the intent":            {Call: rbdtest.CallSetNotes},
		"after the intent":             {Call: rbdtest.CallSetNotes, TakesEffect: true},
		"before the snapshot":          {Call: rbdtest.CallSnapshotImage},
		"after the snapshot":           {Call: rbdtest.CallSnapshotImage, TakesEffect: true},
		"before the clone":             {Call: rbdtest.CallCloneImage},
		"in the clone":                 {Call: rbdtest.CallCloneImage, HalfWay: true},
		"after the clone":              {Call: rbdtest.CallCloneImage, TakesEffect: true},
		"before the snapshot's end":    {Call: rbdtest.CallRemoveSnapshot},
		"after the snapshot's end":     {Call: rbdtest.CallRemoveSnapshot, TakesEffect: true},
		"before it grows":              {Call: rbdtest.CallGrowImage},
		"after it has grown":           {Call: rbdtest.CallGrowImage, TakesEffect: true},
		"before the mark":              {Call: rbdtest.CallSetMetadata},
		"after the mark":               {Call: rbdtest.CallSetMetadata, TakesEffect: true},
		"before the source is seen":    {Call: rbdtest.CallImage, Image: testImage},
		"before it is known to be new": {Call: rbdtest.CallImage, Image: cloneImage},
		"before the journal is read":   {Call: rbdtest.CallNotes},
	}
}

// cutOff lets a process die while it makes the clone.
func (f *cloneFixture) cutOff(t *testing.T, fault rbdtest.FakeFault) {
	t.Helper()
	f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("2Gi") })
	// Calls after it fail, too: a process that is dead cleans nothing up.
	fault.Err = errors.New("killed")
	f.ceph.Fake(fault)
	if fault.Call == rbdtest.CallCloneImage || fault.Call == rbdtest.CallSnapshotImage {
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot, Err: errors.New("killed")})
	}
	if _, _, err := f.provision(t.Context(), t); err == nil {
		t.Fatal("it made a volume")
	}
	f.restart(t, false)
	f.config.MaxCloneDepth = 4
	f.ceph.ClearFaults()
}

// TestCloneCutOff kills a process at each moment; the next one makes the volume.
func TestCloneCutOff(t *testing.T) {
	for name, fault := range cloneCrashes() {
		t.Run(name, func(t *testing.T) {
			f := newCloneFixture(t)
			f.cutOff(t, fault)
			pv := f.mustProvision(t)
			checkSame(t, "the image", cloneImage, pv.Spec.RBD.RBDImage)
			image, _ := f.ceph.Image(testPool, cloneImage)
			checkSame(t, "the clone's size", 2<<30, image.SizeBytes)
			checkSame(t, "the clone's volume", "pvc-5678", image.Metadata[metaVolume])
			checkSame(t, "what the clone has", "what the source has", f.ceph.Data(testPool, cloneImage))
			f.checkSource(t, 1)
			checkSame(t, "the remains", nil, f.ceph.Remains(testPool))
			f.checkIntents(t, cloneImage)
		})
	}
}

// TestCloneRecover kills a process at each moment, and the claim is gone when the
// next one comes: nothing is left.
func TestCloneRecover(t *testing.T) {
	for name, fault := range cloneCrashes() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newCloneFixture(t)
				f.cutOff(t, fault)
				f.dropLive(t)
				f.recoverAll(t)
				f.checkNoClone(t)
				f.checkIntents(t)
			})
		})
	}
}

// TestCloneGone: a claim that went while its clone was made gets its volume all the
// same, to be released, if that was made; or else nothing.
func TestCloneGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.mustProvision(t)
		f.dropLive(t)
		f.mustProvision(t)
		f.checkClone(t)
	})
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallSetMetadata})
		f.dropLive(t)
		_, _, err := f.provision(t.Context(), t)
		checkIgnored(t, err)
		f.recoverAll(t)
		f.checkNoClone(t)
		f.checkIntents(t)
	})
}

// TestClonesAreDeleted: source and clone go in either order, and nothing is left.
func TestClonesAreDeleted(t *testing.T) {
	t.Run("the source first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			clone := f.bind(t, f.mustProvision(t))
			f.release(t, f.source, f.volume)
			f.purgeFor(t, 10*time.Minute)
			checkSame(t, "the images", []string{cloneImage}, f.ceph.Images(testPool))
			checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
			checkSame(t, "what the clone has", "what the source has", f.ceph.Data(testPool, cloneImage))
			f.release(t, f.options, clone)
			f.purgeFor(t, purgeQuiet+3*purgeEvery) // not after the longest backoff
			f.checkPurged(t)
		})
	})
	t.Run("the clone first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.release(t, f.options, f.bind(t, f.mustProvision(t)))
			f.purgeFor(t, time.Minute)
			f.checkNoClone(t)
			f.release(t, f.source, f.volume)
			f.purgeFor(t, time.Minute)
			f.checkPurged(t)
		})
	})
	// A snapshot that an attempt left is no obstacle, one that somebody made is.
	t.Run("with a snapshot that was left", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCloneImage})
			f.ceph.AddSnapshot(testPool, testImage, "somebody's")
			err := f.Delete(f.withLog(t.Context()), f.volume)
			if !errors.Is(err, rbd.ErrImageHasSnapshots) || !strings.Contains(err.Error(), `snapshots: somebody's:`) {
				t.Errorf("got %v", err)
			}
			f.ceph.RemoveSnapshot(testPool, testImage, "somebody's")
			f.release(t, f.source, f.volume)
			f.purgeFor(t, time.Minute)
			f.dropLive(t)
			f.recoverAll(t)
			f.checkPurged(t)
		})
	})
	// One that reached the image when it was in the trash already.
	t.Run("with a snapshot that came late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.ceph.AddSnapshot(testPool, testImage, cloneSnapshot("5678"))
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot, Err: nil, Before: func() {
				f.ceph.AddSnapshot(testPool, testImage, cloneSnapshot("9"))
			}})
			f.release(t, f.source, f.volume)
			checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
			f.purgeFor(t, time.Minute)
			f.checkPurged(t)
		})
	})
}

// TestCloneHalfMade: what librbd leaves that is killed in the middle of a clone is
// removed, whether the claim still wants it or not.
func TestCloneHalfMade(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, *cloneFixture){
		"the snapshot does not know of it": func(_ *testing.T, f *cloneFixture) { f.ceph.HalfClone(testPool, testImage, cloneImage) },
		"it does not know its parent": func(t *testing.T, f *cloneFixture) {
			f.seed(t, f.ceph, cloneImage, rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newCloneFixture(t)
			f.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCloneImage})
			leave(t, f)
			f.mustProvision(t)
			if f.ceph.Dangling(testPool, cloneImage) {
				t.Error("the snapshot that it depends on is gone")
			}
			checkSame(t, "what the clone has", "what the source has", f.ceph.Data(testPool, cloneImage))
			f.checkSource(t, 1)
		})
		t.Run(name+", and the claim is gone", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newCloneFixture(t)
				f.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCloneImage})
				leave(t, f)
				f.dropLive(t)
				f.recoverAll(t)
				f.checkNoClone(t)
				f.checkIntents(t)
			})
		})
	}
}

// TestCloneOfSourceThatGrew: a snapshot of before, or of after it was looked at.
func TestCloneOfSourceThatGrew(t *testing.T) {
	grow := func(t *testing.T, f *cloneFixture, size uint64) {
		t.Helper()
		pool, err := f.config.Access.Open(t.Context(), f.location(t))
		if err != nil {
			t.Fatal(err)
		}
		defer pool.Close()
		if err := pool.GrowImage(t.Context(), testImage, size); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a snapshot of before", func(t *testing.T) {
		f := newCloneFixture(t)
		f.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCloneImage}) // for a claim of 2 GiB
		grow(t, f, 2<<30)
		f.mustProvision(t)
		image, _ := f.ceph.Image(testPool, cloneImage)
		checkSame(t, "the clone's size", 2<<30, image.SizeBytes)
	})
	t.Run("grown since it was looked at", func(t *testing.T) {
		f := newCloneFixture(t)
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSnapshotImage, Before: func() { grow(t, f, 4<<30) }})
		for range 2 {
			if _, _, err := f.provision(t.Context(), t); err == nil || !strings.Contains(err.Error(), "has 4Gi, more than the claim requests") {
				t.Errorf("got %v", err)
			}
			checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
		}
	})
	t.Run("and killed then", func(t *testing.T) {
		f := newCloneFixture(t)
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSnapshotImage, Before: func() { grow(t, f, 4<<30) }})
		f.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot})
		f.dropLive(t)
		synctest.Test(t, func(t *testing.T) { f.recoverAll(t) })
		checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
		f.checkIntents(t)
	})
}

// TestCloneSourceMadeAnew: the source's claim has another volume at the next attempt;
// what was made from the first one goes.
func TestCloneSourceMadeAnew(t *testing.T) {
	for name, fault := range map[string]rbdtest.FakeFault{
		"a clone": {Call: rbdtest.CallSetMetadata}, "a snapshot": {Call: rbdtest.CallCloneImage},
	} {
		t.Run(name, func(t *testing.T) {
			f := newCloneFixture(t)
			f.cutOff(t, fault)
			clone := f.options
			if err := f.client.CoreV1().PersistentVolumeClaims("apps").Delete(t.Context(), "data", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			f.options = options()
			f.options.StorageClass = clone.StorageClass
			f.options.PVC.UID, f.options.PVName = "new", "pvc-new"
			f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
			f.bind(t, f.mustProvision(t))

			f.options = clone
			f.mustProvision(t)
			checkSame(t, "the images", []string{testImage, cloneImage, imagePrefix + "new"}, f.ceph.Images(testPool))
			source, _ := f.ceph.Image(testPool, imagePrefix+"new")
			image, _ := f.ceph.Image(testPool, cloneImage)
			checkSame(t, "the clone's parent", source.ID, image.Parent)
			f.checkSource(t, 0)
		})
	}
}

// TestCloneSourceGone: a clone that was made gets its volume, also when its source is
// gone before that is saved; with the file system that the source had.
func TestCloneSourceGone(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		f := newCloneFixture(t)
		f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("2Gi") })
		want := f.mustProvision(t)
		f.release(t, f.source, f.volume)
		f.putParameter(t, "fsType", "ext4")
		// Another one of its name is as good as none.
		clone := f.options
		f.options = options()
		f.options.StorageClass, f.options.PVC.UID, f.options.PVName = clone.StorageClass, "new", "pvc-new"
		f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
		f.bind(t, f.mustProvision(t))
		f.options = clone
		f.restart(t, false)
		if !wanted {
			f.dropLive(t)
		}
		checkSame(t, "the volume", want, f.mustProvision(t))
	}
}

// Somebody's image that comes in between is left alone.
func TestCloneSomebodysImage(t *testing.T) {
	f := newCloneFixture(t)
	f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSnapshotImage, Before: func() {
		f.seed(t, f.ceph, cloneImage, rbd.ImageSpec{SizeBytes: 5 << 30}, map[string]string{metaVolume: "theirs"})
	}})
	for _, want := range []error{rbd.ErrImageExists, errImageConflict} {
		if _, _, err := f.provision(t.Context(), t); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	image, _ := f.ceph.Image(testPool, cloneImage)
	checkSame(t, "whose the image is", "theirs", image.Metadata[metaVolume])
	f.checkSource(t, 0)
}

// A claim does not wait for long, with its worker, while its source is busy.
func TestCloneBusySource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		defer f.images.lock(journal.Place{FSID: f.ceph.FSID(), Pool: testPool}, testImage)()
		begin := time.Now()
		_, _, err := f.provision(t.Context(), t)
		if err == nil || !strings.Contains(err.Error(), `other clones of its source, claim "data", are being made`) {
			t.Errorf("got %v", err)
		}
		checkSame(t, "the wait", sourceWait, time.Since(begin))
		f.checkNoClone(t)
	})
}
