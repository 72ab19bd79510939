// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// cutOff lets a process die while it makes the clone.
func (f *cloneFixture) cutOff(t *testing.T, fault rbdtest.FakeFault) {
	t.Helper()
	f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("2Gi") })
	f.ceph.FakeCrash(fault)
	if _, _, err := f.provision(t.Context(), t); err == nil {
		t.Fatal("it made a volume")
	}
	f.restart(t)
	f.ceph.ClearFaults()
}

// TestCloneGone: a claim was deleted while its clone was made. If the clone was made, it
// gets a volume, which Kubernetes releases; otherwise nothing is left.
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

// TestClonesAreDeleted: source and clone are deleted in either order, and nothing is
// left.
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
			f.purgeFor(t, 4*time.Second) // not after the longest backoff
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
	// A snapshot that an attempt left is no obstacle, but one that a person made is.
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
	// A snapshot that was made when the image was in the trash already.
	t.Run("with a snapshot that came late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.ceph.AddSnapshot(testPool, testImage, image.CloneSnapshot("5678"))
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot, Err: nil, Before: func() {
				f.ceph.AddSnapshot(testPool, testImage, image.CloneSnapshot("9"))
			}})
			f.release(t, f.source, f.volume)
			checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
			f.purgeFor(t, time.Minute)
			f.checkPurged(t)
		})
	})
}

// TestCloneSourceGone: a clone that was made gets its volume even if its source is gone
// before that is saved. The volume has the file system that the source had.
func TestCloneSourceGone(t *testing.T) { synctest.Test(t, testCloneSourceGone) }

func testCloneSourceGone(t *testing.T) {
	for _, wanted := range []bool{true, false} {
		f := newCloneFixture(t)
		f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("2Gi") })
		want := f.mustProvision(t)
		f.release(t, f.source, f.volume)
		f.putParameter(t, "fsType", "ext4")
		// Another claim with the source's name does not count.
		clone := f.options
		f.options = options()
		f.options.StorageClass, f.options.PVC.UID, f.options.PVName = clone.StorageClass, "new", "pvc-new"
		f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
		f.bind(t, f.mustProvision(t))
		f.options = clone
		f.restart(t)
		if !wanted {
			f.dropLive(t)
		}
		checkSame(t, "the volume", want, f.mustProvision(t))
	}
}
