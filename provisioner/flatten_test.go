// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/flatten"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestFlatten: a clone that depends on too many images is flattened before it gets its
// volume, even if another leader takes over.
func TestFlatten(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.maxCloneDepth = 2
			f.restart(t)
			f.chain(t, 2)
			checkSame(t, "the clones to flatten", 0, f.flatten.Count())

			f.next(t, "chain-2", "chain-3", "3")
			for range 2 {
				f.mustWait(t)
			}
			if restarted {
				f.restart(t)
				f.mustWait(t)
			}
			checkSame(t, "the clones to flatten", 1, f.flatten.Count())
			f.flattenFor(t, time.Minute)
			checkSame(t, "the clones to flatten", 0, f.flatten.Count())
			checkSame(t, "the clones that were flattened", 1, f.flattened)
			f.mustProvision(t)
			f.bind(t, f.mustProvision(t))
			for i, parent := range map[int]bool{1: true, 2: true, 3: false} {
				image, _ := f.ceph.Image(testPool, chainImage(i))
				if (image.Parent != "") != parent {
					t.Errorf("clone %d depends on %q", i, image.Parent)
				}
				checkSame(t, "what it has", "what the source has", f.ceph.Data(testPool, chainImage(i)))
			}
			checkSame(t, "the log of it", 1, f.countLog("Clone flattened"))

			// A clone of the flattened clone depends on one image only.
			f.next(t, "chain-3", "chain-4", "4")
			f.mustProvision(t)
		})
	}
}

// TestFlattenGone: the claim is deleted before or while its clone is flattened.
func TestFlattenGone(t *testing.T) {
	for name, length := range map[string]time.Duration{"before it begins": 0, "once it has begun": time.Minute, "when it is done": 2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newCloneFixture(t)
				f.maxCloneDepth = 0
				f.restart(t)
				if length > 0 {
					f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Before: func() {
						defer f.ceph.Watch(testPool, cloneImage, "10.0.0.7:0/1")()
						time.Sleep(time.Hour)
					}})
				}
				f.mustWait(t)
				f.flattenFor(t, length)
				f.dropLive(t)
				_, _, err := f.Provision(f.withLog(t.Context()), f.options)
				checkIgnored(t, err)
				time.Sleep(2 * time.Hour) // until the call has ended
				f.recoverAll(t)
				f.checkNoClone(t)
				f.checkIntents(t)
				f.flattenFor(t, time.Hour)
				checkSame(t, "the clones to flatten", 0, f.flatten.Count())
			})
		})
	}
}

// TestFlattenForgotten: the library forgets a claim whose class is gone while its clone
// waits to be flattened. Then the claim is deleted.
func TestFlattenForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.maxCloneDepth = 0
		f.restart(t)
		f.mustWait(t)
		f.dropLive(t)
		f.recoverAll(t)
		f.checkNoClone(t)
		f.checkIntents(t)
	})
}

// An error of flattening shows on the claim, and is retried.
func TestFlattenFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.maxCloneDepth = 0
		f.restart(t)
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Err: rbd.ErrPoolFull, Times: 5})
		f.mustWait(t)
		f.flattenFor(t, 10*time.Second)
		_, state, err := f.provision(t.Context(), t)
		checkSame(t, "the state", controller.ProvisioningInBackground, state)
		const want = `flatten image "kubernetes-dynamic-pvc-5678" in pool "rbd": pool is full or over its quota: free space, add storage, or raise the quota`
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
		f.flattenFor(t, 5*time.Minute)
		f.mustProvision(t)
		image, _ := f.ceph.Image(testPool, cloneImage)
		checkSame(t, "the clone's parent", "", image.Parent)
	})
}

// TestFlattenOneAtATime: the clones of one pool are flattened one after the other, in
// their order, however long one takes. Meanwhile nothing is cloned from them.
func TestFlattenOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.maxCloneDepth = 0
		f.restart(t)
		var running, most atomic.Int32
		for i, name := range []string{"a", "b", "c", "d"} {
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Image: "flattening " + "kubernetes-dynamic-pvc-" + name, Before: func() {
				most.Store(max(most.Load(), running.Add(1)))
				time.Sleep(time.Hour)
				running.Add(-1)
			}})
			f.next(t, "data", name, types.UID(name))
			f.mustWait(t)
			checkSame(t, "the clones to flatten", i+1, f.flatten.Count())
		}
		var loop sync.WaitGroup
		loop.Go(func() { f.flattenFor(t, 6*time.Hour) })
		time.Sleep(150 * time.Minute)
		for name, done := range map[string]bool{"a": true, "b": true, "c": false, "d": false} {
			image, _ := f.ceph.Image(testPool, "kubernetes-dynamic-pvc-"+name)
			checkSame(t, name+" was flattened", done, image.Parent == "")
		}
		f.next(t, "c", "of-c", "of-c")
		_, _, err := f.Provision(t.Context(), f.options)
		if err == nil || !strings.Contains(err.Error(), `its source, claim "c", is not bound to a volume yet`) {
			t.Errorf("got %v", err)
		}
		loop.Wait()
		checkSame(t, "the clones to flatten", 0, f.flatten.Count())
		checkSame(t, "the most at the same time", 1, most.Load())
	})
}

// Linux maps no image that has too many snapshots.
func TestCloneLimits(t *testing.T) { synctest.Test(t, testCloneLimits) }

func testCloneLimits(t *testing.T) {
	for _, test := range []struct {
		has     int
		flatten int
		want    string
	}{
		{399, 0, ""},
		{400, 1, flatten.ErrFlattening.Error()},
		{480, 0, "has nearly as many snapshots and clones as Linux can map an image with"},
	} {
		f := newCloneFixture(t)
		f.ceph.FakeImages(func(image *rbd.Image) {
			if image.ID == f.before.ID {
				image.Kept = test.has
			}
		})
		_, _, err := f.provision(t.Context(), t)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%d snapshots: got %v", test.has, err)
		}
		checkSame(t, "the clones to flatten", test.flatten, f.flatten.Count())
	}
}
