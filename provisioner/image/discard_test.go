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

// discard removes what an attempt left, knowing only the attempt's intent.
func (w *world) discard(t *testing.T) (image.Fate, string, error) {
	t.Helper()
	in, err := w.Journal.Intents.Of(t.Context(), w.Pool, w.want.Image.Name)
	if err != nil {
		t.Fatal(err)
	}
	if in.Volume == "" {
		in = w.want.Intent()
	}
	return w.Discard(t.Context(), image.FromIntent(in, w.want.Image.PoolID, testIdentity, testCluster), func(rbd.Image) error {
		return errors.New("it is not large")
	})
}

// TestDiscardCutOff kills a process at each moment of making an image, and the next one
// at each moment of removing it. Nothing is left.
func TestDiscardCutOff(t *testing.T) {
	removals := map[string]rbdtest.FakeFault{
		"not":                      {},
		"before it looks":          {Call: rbdtest.CallImage},
		"before it looks for data": {Call: rbdtest.CallWritten},
		"before the removal":       {Call: rbdtest.CallRemoveImage},
		"in the removal":           {Call: rbdtest.CallRemoveImage, HalfWay: true},
		"after the removal":        {Call: rbdtest.CallRemoveImage, TakesEffect: true},
	}
	for name, fault := range rbdtest.CreateCrashes() {
		for removal, second := range removals {
			t.Run(name+", "+removal, func(t *testing.T) {
				w := newWorld(t)
				w.cutOff(t, fault)
				there := len(w.ceph.Images(testPool)) > 0
				if second.Call != "" {
					w.ceph.FakeCrash(second)
					fate, reason, err := w.discard(t)
					if err != nil && (fate != image.Kept || reason != "" || !errors.Is(err, rbdtest.ErrKilled)) {
						t.Errorf("got %s, %q, error %v", fate, reason, err)
					}
					w.ceph.ClearFaults()
					there = there && len(w.ceph.Images(testPool)) > 0
				}
				want := image.Absent
				if there {
					want = image.Removed
				}
				fate, reason, err := w.discard(t)
				if fate != want || reason != "" || err != nil {
					t.Errorf("got %s, %q, error %v; want %s", fate, reason, err, want)
				}
				w.checkNothing(t)
			})
		}
	}
}

// TestDiscardOwn: images of attempts go, whatever they got when they were made.
func TestDiscardOwn(t *testing.T) {
	for name, test := range map[string]struct {
		marked   bool
		features []string
		dataPool string // that the class names by now
	}{
		"striped":         {false, []string{rbd.FeatureLayering, rbd.FeatureStriping}, ""},
		"marked, striped": {true, []string{rbd.FeatureLayering, rbd.FeatureStriping}, ""},
		"marked, with features that people added": {true, []string{"exclusive-lock", "journaling", rbd.FeatureLayering}, ""},
		"marked, of a class without a data pool":  {true, []string{rbd.FeatureLayering}, "data"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var metadata map[string]string
			if test.marked {
				metadata = w.marks(nil)
			}
			w.seed(t, testImage, rbd.ImageSpec{SizeBytes: gib}, metadata)
			w.ceph.FakeImages(func(i *rbd.Image) { i.Features = test.features })
			w.want.DataPool = test.dataPool
			if fate, reason, err := w.discard(t); fate != image.Removed || reason != "" || err != nil {
				t.Errorf("got %s, %q, error %v; want %s", fate, reason, err, image.Removed)
			}
			w.checkNothing(t)
		})
	}
}

// TestDiscardLeaves: these images stay.
func TestDiscardLeaves(t *testing.T) {
	watch := func(w *world) { w.ceph.Watch(testPool, testImage, "10.0.1.1:0/1") }
	nothing := func(*world) {}
	plain := rbd.ImageSpec{SizeBytes: gib}
	for _, test := range []struct {
		name     string
		spec     rbd.ImageSpec
		metadata map[string]string // beside all marks; nil for no marks
		change   func(*world)
		want     image.Fate
		reason   string // of Foreign, a part
		err      error  // of Kept
	}{
		{"another volume's", plain, map[string]string{volume.MetaVolume: "pvc-other"}, nothing, image.Foreign, `"pvc-other"`, nil},
		{"another volume's, in use", plain, map[string]string{volume.MetaVolume: "pvc-other"}, watch, image.Foreign, `"pvc-other"`, nil},
		{"another cluster's", plain, map[string]string{volume.MetaCluster: "cluster-2"}, nothing, image.Foreign, `"cluster-2"`, nil},
		{"another identity's", plain, map[string]string{volume.MetaIdentity: "there"}, nothing, image.Foreign, `"there"`, nil},
		{"one of another size", rbd.ImageSpec{SizeBytes: 2 * gib}, map[string]string{}, nothing, image.Foreign, "its size differs", nil},
		{"one of another size, without marks", rbd.ImageSpec{SizeBytes: 2 * gib}, nil, nothing, image.Foreign, "its size differs", nil},
		{"one of other features", plain, nil, func(w *world) {
			w.ceph.FakeImages(func(i *rbd.Image) { i.Features = append(i.Features, "object-map") })
		}, image.Foreign, "its features differ", nil},
		{"one with another data pool", rbd.ImageSpec{SizeBytes: gib, DataPool: "data"}, nil, func(w *world) { w.want.DataPool = "other" },
			image.Foreign, "its data pool differs", nil},
		{"a clone", plain, map[string]string{}, func(w *world) { w.ceph.FakeImages(func(i *rbd.Image) { i.Parent = "10" }) },
			image.Foreign, "it is a clone of another image", nil},
		{"one with data", plain, map[string]string{}, func(w *world) { w.ceph.Write(testPool, testImage) }, image.Foreign, "it has data", nil},
		{"one in use", plain, map[string]string{}, watch, image.Kept, "", rbd.ErrImageInUse},
		{"one in use, without marks", plain, nil, watch, image.Kept, "", rbd.ErrImageInUse},
		{"one of another size, in use", rbd.ImageSpec{SizeBytes: 2 * gib}, nil, watch, image.Kept, "", rbd.ErrImageInUse},
		{"one with a snapshot", plain, map[string]string{}, func(w *world) { w.ceph.AddSnapshot(testPool, testImage, "monday") },
			image.Kept, "", rbd.ErrImageHasSnapshots},
		{"one that Ceph does not describe", plain, map[string]string{}, func(w *world) {
			w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Err: rbd.ErrTimeout})
		}, image.Kept, "", rbd.ErrTimeout},
		{"one of which Ceph does not say whether it has data", plain, map[string]string{}, func(w *world) {
			w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallWritten, Err: rbd.ErrTimeout})
		}, image.Kept, "", rbd.ErrTimeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			metadata := test.metadata
			if metadata != nil {
				metadata = w.marks(metadata)
			}
			w.seed(t, testImage, test.spec, metadata)
			test.change(w)
			before, _ := w.ceph.Image(testPool, testImage)
			fate, reason, err := w.discard(t)
			if fate != test.want || !strings.Contains(reason, test.reason) || (reason == "") != (test.reason == "") || !errors.Is(err, test.err) {
				t.Errorf("got %s, %q, error %v; want %s, %q, %v", fate, reason, err, test.want, test.reason, test.err)
			}
			after, _ := w.ceph.Image(testPool, testImage)
			checkSame(t, "the image", before, after)
		})
	}
}
