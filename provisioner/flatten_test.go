// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestFlatten: a clone that depends on more images than it may is flattened, once it
// has its volume.
func TestFlatten(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.config.MaxCloneDepth = 2
			flattened := 0
			f.config.Flattened = func() { flattened++ }
			f.chain(t, 2)
			checkSame(t, "the clones to flatten", 0, f.Unflattened())

			f.options = f.cloneOf("chain-2", "chain-3", "3")
			f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
			pv := f.mustProvision(t)
			f.flattenFor(t, time.Minute)
			checkSame(t, "the clones to flatten", 1, f.Unflattened())
			checkSame(t, "their notes", chainImage(3), f.flattenings(t))
			checkSame(t, "the clones that were flattened before they have volumes", 0, flattened)

			f.bind(t, pv)
			if restarted {
				f.restart(t, false)
				f.config.Flattened = func() { flattened++ }
				f.recoverAll(t)
			}
			f.flattenFor(t, 10*time.Minute)
			checkSame(t, "the clones to flatten", 0, f.Unflattened())
			checkSame(t, "their notes", "", f.flattenings(t))
			checkSame(t, "the clones that were flattened", 1, flattened)
			for i, parent := range map[int]bool{1: true, 2: true, 3: false} {
				image, _ := f.ceph.Image(testPool, chainImage(i))
				if (image.Parent != "") != parent {
					t.Errorf("clone %d depends on %q", i, image.Parent)
				}
				checkSame(t, "what it has", "what the source has", f.ceph.Data(testPool, chainImage(i)))
			}
			checkSame(t, "the log of it", 1, f.countLog("Clone flattened"))
		})
	}
}

// A clone that goes before it is flattened is forgotten.
func TestFlattenGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.config.MaxCloneDepth = 0
		f.release(t, f.options, f.bind(t, f.mustProvision(t)))
		checkSame(t, "their notes", cloneImage, f.flattenings(t))
		f.purgeFor(t, time.Minute)
		f.flattenFor(t, 10*time.Minute)
		checkSame(t, "the clones to flatten", 0, f.Unflattened())
		checkSame(t, "their notes", "", f.flattenings(t))
		f.checkNoClone(t)
	})
}

// What goes wrong is tried again; the log says it once.
func TestFlattenFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.config.MaxCloneDepth = 0
		f.bind(t, f.mustProvision(t))
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Err: rbd.ErrPoolFull, Times: 3})
		f.flattenFor(t, 15*time.Second)
		checkSame(t, "the clones to flatten", 1, f.Unflattened())
		f.flattenFor(t, 5*time.Minute)
		checkSame(t, "the clones to flatten", 0, f.Unflattened())
		checkSame(t, "the log of it", 1, f.countLog("could not be flattened"))
		image, _ := f.ceph.Image(testPool, cloneImage)
		checkSame(t, "the clone's parent", "", image.Parent)
	})
}

// TestFlattenLong: a flattening that outlives its deadline goes on, and its clone is
// not deleted meanwhile.
func TestFlattenLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.config.MaxCloneDepth = 0
		pv := f.bind(t, f.mustProvision(t))
		stop := func() {}
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Before: func() {
			stop = f.ceph.Watch(testPool, cloneImage, "10.0.0.7:0/1")
			time.Sleep(time.Hour)
			stop()
		}})
		f.flattenFor(t, 10*time.Minute)
		checkSame(t, "the clones to flatten", 1, f.Unflattened())
		err := f.Delete(f.withLog(t.Context()), pv)
		if err == nil || !strings.Contains(err.Error(), "is a clone that is being flattened: it is removed once that is done") {
			t.Errorf("got %v", err)
		}
		f.flattenFor(t, time.Hour)
		checkSame(t, "the clones to flatten", 0, f.Unflattened())
		f.release(t, f.options, pv)
		f.purgeFor(t, time.Minute)
		f.checkNoClone(t)
	})
}

// Linux maps no image that depends on too many others, or has too many snapshots.
func TestCloneLimits(t *testing.T) {
	t.Run("depth", func(t *testing.T) {
		f := newCloneFixture(t)
		f.chain(t, CloneDepthLimit)
		checkSame(t, "the clones to flatten", CloneDepthLimit-4, f.Unflattened())
		f.options = f.cloneOf("chain-16", "chain-17", "17")
		f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
		_, _, err := f.provision(t.Context(), t)
		if err == nil || !strings.Contains(err.Error(), "it is cloned once it is flattened") {
			t.Errorf("got %v", err)
		}
		image, _ := f.ceph.Image(testPool, chainImage(16))
		checkSame(t, "the source's snapshots", nil, image.Snapshots)
	})
	t.Run("snapshots", func(t *testing.T) {
		for _, test := range []struct {
			has     int
			flatten int
			want    string
		}{
			{manySnapshots - 1, 0, ""},
			{manySnapshots, 1, ""},
			{snapshotsOfLinux, 0, "has nearly as many clones and snapshots as Linux can map an image with"},
		} {
			f := newCloneFixture(t)
			f.connector.show = func(image *rbd.Image) {
				if image.ID == f.before.ID {
					image.Kept = test.has
				}
			}
			_, _, err := f.provision(t.Context(), t)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%d snapshots: got %v", test.has, err)
			}
			checkSame(t, "the clones to flatten", test.flatten, f.Unflattened())
		}
	})
}
