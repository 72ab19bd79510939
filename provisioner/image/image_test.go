// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// cutOff lets a process die while it makes the image.
func (w *world) cutOff(t *testing.T, fault rbdtest.FakeFault) {
	t.Helper()
	w.ceph.FakeCrash(fault)
	if _, err := w.Make(t.Context(), w.want); !errors.Is(err, rbdtest.ErrKilled) {
		t.Fatalf("got %v, want %v", err, rbdtest.ErrKilled)
	}
}

// TestMake makes an image, and then finds it.
func TestMake(t *testing.T) {
	w := newWorld(t)
	for range 2 {
		checkSame(t, "what was made", image.Made{}, w.mustMake(t))
		w.checkMade(t)
	}
}

// TestMakeWithDataPool makes an image with its data in another pool.
func TestMakeWithDataPool(t *testing.T) {
	w := newWorld(t)
	w.want.DataPool = "data"
	for range 2 {
		w.mustMake(t)
		got, _ := w.ceph.Image(testPool, testImage)
		checkSame(t, "the data pool", "data", got.DataPool)
	}
}

// TestMakeCutOff kills a process at each moment; the next process makes the image.
func TestMakeCutOff(t *testing.T) {
	for name, fault := range rbdtest.CreateCrashes() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cutOff(t, fault)
			w.mustMake(t)
			w.checkMade(t)
		})
	}
}

// TestMakeCutOffTwice kills the second process, too, at each of its moments.
func TestMakeCutOffTwice(t *testing.T) {
	for name, fault := range map[string]rbdtest.FakeFault{
		"before it looks":     {Call: rbdtest.CallImage},
		"before the remains":  {Call: rbdtest.CallRemoveImage},
		"after the remains":   {Call: rbdtest.CallRemoveImage, TakesEffect: true},
		"before the image":    {Call: rbdtest.CallCreateImage, Image: testImage},
		"before it is marked": {Call: rbdtest.CallSetMetadata},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCreateImage, HalfWay: true})
			w.cutOff(t, fault)
			w.mustMake(t)
			w.checkMade(t)
		})
	}
}

// TestFindCutOff kills a process at each moment, and the claim is gone when the next one
// comes. That finds the image if there is one, and makes none.
func TestFindCutOff(t *testing.T) {
	for name, fault := range rbdtest.CreateCrashes() {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.cutOff(t, fault)
			there := len(w.ceph.Images(testPool)) > 0
			for range 2 {
				made, found, err := w.Find(t.Context(), w.want)
				if err != nil || found != there {
					t.Fatalf("found %v, error %v; want %v", found, err, there)
				}
				checkSame(t, "what was made", image.Made{}, made)
				if there {
					w.checkMade(t)
				} else {
					w.checkNothing(t)
				}
			}
		})
	}
}

// TestFindAfterFaults: if Ceph does not answer, Find returns an error.
func TestFindAfterFaults(t *testing.T) {
	for _, call := range []rbdtest.Call{rbdtest.CallImage, rbdtest.CallSetMetadata, rbdtest.CallSetNotes} {
		t.Run(string(call), func(t *testing.T) {
			w := newWorld(t)
			w.seed(t, testImage, rbd.ImageSpec{SizeBytes: gib}, nil)
			w.ceph.Fake(rbdtest.FakeFault{Call: call, Err: rbd.ErrConnectionLost})
			if _, _, err := w.Find(t.Context(), w.want); !errors.Is(err, rbd.ErrConnectionLost) {
				t.Fatalf("got %v, want %v", err, rbd.ErrConnectionLost)
			}
			if _, found, err := w.Find(t.Context(), w.want); err != nil || !found {
				t.Errorf("found %v, error %v", found, err)
			}
			w.checkMade(t)
		})
	}
}

// TestRemains: what other versions of Ceph leave of an image is removed.
func TestRemains(t *testing.T) {
	for _, remains := range []rbdtest.Remains{rbdtest.RemainsID, rbdtest.RemainsDirectory, rbdtest.RemainsDirectoryOnly} {
		t.Run(remains.String(), func(t *testing.T) {
			w := newWorld(t)
			w.ceph.AddRemains(testPool, testImage, remains)
			if _, found, err := w.Find(t.Context(), w.want); err != nil || found {
				t.Errorf("found %v, error %v", found, err)
			}
			w.checkNothing(t)
			w.ceph.AddRemains(testPool, testImage, remains)
			w.mustMake(t)
			w.checkMade(t)
		})
	}
}

// TestConflict: an image has the name of the claim's image, but is not that. Any change
// to it would cost its owner data.
func TestConflict(t *testing.T) {
	const watcher = "10.0.2.1:0/77"
	watch := func(_ *testing.T, w *world) { w.ceph.Watch(testPool, testImage, watcher) }
	snapshot := func(_ *testing.T, w *world) { w.ceph.AddSnapshot(testPool, testImage, "backup") }
	nothing := func(*testing.T, *world) {}
	wantData := func(_ *testing.T, w *world) { w.want.DataPool = "data" }
	features := func(features ...string) func(*testing.T, *world) {
		return func(_ *testing.T, w *world) { w.ceph.FakeImages(func(i *rbd.Image) { i.Features = features }) }
	}
	plain := rbd.ImageSpec{SizeBytes: gib}
	all := map[string]string{volume.MetaVolume: "pvc-1234", volume.MetaIdentity: testIdentity, volume.MetaCluster: testCluster}
	with := func(key, value string) map[string]string {
		marks := maps.Clone(all)
		marks[key] = value
		return marks
	}
	const remedy = ": rename or remove it"
	for _, test := range []struct {
		name     string
		spec     rbd.ImageSpec
		metadata map[string]string
		change   func(*testing.T, *world)
		want     string // the end of the text
	}{
		{"that of another volume", plain, with(volume.MetaVolume, "pvc-other"), nothing, `: its metadata kubernetes.io/created-for/pv/name is "pvc-other"` + remedy},
		{"that of another volume, and nothing else is known", plain, map[string]string{volume.MetaVolume: "pvc-other"}, nothing,
			`: its metadata kubernetes.io/created-for/pv/name is "pvc-other"` + remedy},
		{"that of a volume whose name begins like ours", plain, with(volume.MetaVolume, "pvc-12345"), nothing, `"pvc-12345"` + remedy},
		{"another provisioner's", plain, with(volume.MetaIdentity, "elsewhere"), nothing, `: its metadata rbdProvisionerIdentity is "elsewhere"` + remedy},
		{"another provisioner's, and nothing else is known", plain, map[string]string{volume.MetaIdentity: "elsewhere"}, nothing,
			`: its metadata rbdProvisionerIdentity is "elsewhere"` + remedy},
		{"another provisioner's that is in use", plain, map[string]string{volume.MetaIdentity: "elsewhere"}, watch, `"elsewhere"` + remedy},
		// That cluster may be using it.
		{"another Kubernetes cluster's", plain, with(volume.MetaCluster, "cluster-2"), nothing, `is "cluster-2", which is another Kubernetes cluster`},
		{"a smaller one", rbd.ImageSpec{SizeBytes: gib - 1}, all, nothing, ": its size differs" + remedy},
		{"a larger one", rbd.ImageSpec{SizeBytes: 2 * gib}, all, nothing, ": its size differs" + remedy},
		{"a larger one without marks", rbd.ImageSpec{SizeBytes: 2 * gib}, nil, nothing, ": its size differs" + remedy},
		{"one with more features", plain, nil, features("exclusive-lock", rbd.FeatureLayering), ": its features differ" + remedy},
		{"one with more features that names our volume alone", plain, map[string]string{volume.MetaVolume: "pvc-1234"},
			features("exclusive-lock", rbd.FeatureLayering), ": its features differ" + remedy},
		{"one without features", plain, nil, features(), ": its features differ" + remedy},
		{"one with a data pool that the class does not name", rbd.ImageSpec{SizeBytes: gib, DataPool: "data"}, nil, nothing, ": its data pool differs" + remedy},
		{"one without the data pool that the class names", plain, nil, wantData, ": its data pool differs" + remedy},
		{"one with another data pool", rbd.ImageSpec{SizeBytes: gib, DataPool: "other"}, nil, wantData, ": its data pool differs" + remedy},
		{"one without marks that is in use", plain, nil, watch, ": its metadata does not name this claim's volume, and a client has it open: if that does not end, rename or remove it"},
		{"one without marks that has a snapshot", plain, nil, snapshot, ": its metadata does not name this claim's volume, and it has snapshots" + remedy},
		{"one that names our provisioner alone and is in use", plain, map[string]string{volume.MetaIdentity: testIdentity}, watch,
			": its metadata does not name this claim's volume, and a client has it open: if that does not end, rename or remove it"},
		{"one that names the claim alone and has a snapshot", plain, map[string]string{volume.MetaClaim: "data"}, snapshot,
			": its metadata does not name this claim's volume, and it has snapshots" + remedy},
		{"a clone", plain, all, func(_ *testing.T, w *world) {
			w.ceph.FakeImages(func(i *rbd.Image) { i.Parent = "10" })
		}, ": it is a clone of another image" + remedy},
		{"one that was to be flattened", plain, with("rbd.ceph.com/flattening", "pending"), nothing, ": it was to be flattened"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.seed(t, testImage, test.spec, test.metadata)
			test.change(t, w)
			before, _ := w.ceph.Image(testPool, testImage)
			for range 2 {
				_, err := w.Make(t.Context(), w.want)
				const begin = `image "kubernetes-dynamic-pvc-1234" in pool "rbd" exists and is not the one for this claim: `
				if !errors.Is(err, image.ErrConflict) || !strings.HasPrefix(err.Error(), begin) || !strings.HasSuffix(err.Error(), test.want) {
					t.Errorf("got the error %v, want one that ends in %q", err, test.want)
				}
			}
			if _, found, err := w.Find(t.Context(), w.want); err != nil || found {
				t.Errorf("found %v, error %v", found, err)
			}
			after, _ := w.ceph.Image(testPool, testImage)
			checkSame(t, "the image", before, after)
			checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
		})
	}
}

// TestAdopt: an earlier attempt, or the retired provisioner, made the image for the
// claim.
func TestAdopt(t *testing.T) {
	nothing := func(*world) {}
	features := func(features ...string) func(*world) {
		return func(w *world) { w.ceph.FakeImages(func(i *rbd.Image) { i.Features = features }) }
	}
	for _, test := range []struct {
		name string
		// metadata is all of the metadata, or, if full is set, what replaces some of the
		// marks; an empty value removes one.
		metadata map[string]string
		full     bool
		// more is what the image has in the end beside the marks.
		more   map[string]string
		change func(*world)
	}{
		{"without marks", nil, false, nil, nothing},
		{"with one mark, the volume's", map[string]string{volume.MetaVolume: "pvc-1234"}, false, nil, nothing},
		{"with one mark, the provisioner's", map[string]string{volume.MetaIdentity: testIdentity}, false, nil, nothing},
		{"with one mark, the claim's", map[string]string{volume.MetaClaim: "data"}, false, nil, nothing},
		{"with all but one", map[string]string{volume.MetaIdentity: ""}, true, nil, nothing},
		{"with all but the cluster's", map[string]string{volume.MetaCluster: ""}, true, nil, nothing},
		{"with an empty one", map[string]string{volume.MetaVolume: "", volume.MetaIdentity: ""}, false, nil, nothing},
		{"with all", nil, true, nil, nothing},
		{"with a claim's name that is not right, which is for people only", map[string]string{volume.MetaClaim: "old"}, true, nil, nothing},
		{"with metadata of others, which stays", map[string]string{"backup": "nightly"}, true, map[string]string{"backup": "nightly"}, nothing},
		{"with all marks, in use", nil, true, nil, func(w *world) { w.ceph.Watch(testPool, testImage, "10.0.2.1:0/77") }},
		{"with the stripes of Ceph's defaults, from an earlier version", nil, false, nil, features(rbd.FeatureLayering, rbd.FeatureStriping)},
		{"with all marks, and features that people gave it", nil, true, nil, features("exclusive-lock", "journaling", rbd.FeatureLayering)},
		{"with all marks, from before the class named a data pool", nil, true, nil, func(w *world) { w.want.DataPool = "data" }},
		{"with all marks and a snapshot", nil, true, nil, func(w *world) { w.ceph.AddSnapshot(testPool, testImage, "backup") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			metadata := test.metadata
			if test.full {
				metadata = w.marks(test.metadata)
			}
			w.seed(t, testImage, rbd.ImageSpec{SizeBytes: gib}, metadata)
			test.change(w)
			want, _ := w.ceph.Image(testPool, testImage)
			want.Metadata = w.marks(test.more)
			w.mustMake(t)
			got, _ := w.ceph.Image(testPool, testImage)
			checkSame(t, "the image", want, got)
			checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
			if _, found, err := w.Find(t.Context(), w.want); err != nil || !found {
				t.Errorf("found %v, error %v", found, err)
			}
		})
	}
}

// TestIntent: an intent has all that a later process must know.
func TestIntent(t *testing.T) {
	pool := volume.PoolID{FSID: "f", Pool: testPool}
	for name, want := range map[string]image.Wanted{
		"plain":            {Image: pool.Image("a"), SizeBytes: gib, ClaimUID: "1"},
		"with a data pool": {Image: pool.Image("a"), SizeBytes: gib, ClaimUID: "1", DataPool: "ec"},
		"a clone": {Image: pool.Image("a"), SizeBytes: gib, ClaimUID: "1", Source: &image.Source{
			ID: "10", Volume: "pvc-0", FSType: "xfs", CapacityBytes: 5,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			want.Owner = volume.Owner{Volume: "pvc-1", Identity: testIdentity, Cluster: testCluster, Claim: "data", Namespace: "apps"}
			checkSame(t, "the image", want, image.FromIntent(want.Intent(), pool, testIdentity, testCluster))
		})
	}
	// The image's own pool counts as none.
	in := journal.Intent{Image: "a", DataPool: testPool}
	checkSame(t, "the data pool", "", image.FromIntent(in, pool, testIdentity, testCluster).DataPool)
}

// TestRemoveIfThere: what an earlier removal left in the trash is removed, too, even if
// another image has the name by now.
func TestRemoveIfThere(t *testing.T) {
	w := newWorld(t)
	w.seed(t, testImage, rbd.ImageSpec{SizeBytes: gib}, nil)
	w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, Err: rbdtest.ErrKilled, HalfWay: true})
	if err := image.RemoveIfThere(t.Context(), w.Pool, testImage); !errors.Is(err, rbdtest.ErrKilled) {
		t.Fatalf("got %v, want %v", err, rbdtest.ErrKilled)
	}
	w.seed(t, testImage, rbd.ImageSpec{SizeBytes: gib}, nil)
	for range 2 {
		if err := image.RemoveIfThere(t.Context(), w.Pool, testImage); err != nil {
			t.Error(err)
		}
		w.checkNothing(t)
	}
}
