// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

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
			f.purgeFor(t, 3*purgeEvery) // not after the longest backoff
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

