// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// TestClone makes a clone, and then finds it.
func TestClone(t *testing.T) {
	for _, size := range []uint64{gib, 3 * gib} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			w := newCloneWorld(t)
			w.want.SizeBytes = size
			for range 2 {
				w.checkMakes(t)
				w.checkClone(t)
				w.checkIntents(t, cloneImage)
			}
			// The intent has all that the next attempt may need.
			got, err := w.Journal.Intents.Of(t.Context(), w.Pool, cloneImage)
			if err != nil {
				t.Fatal(err)
			}
			checkSame(t, "the intent", journal.Intent{
				Image: cloneImage, Namespace: "apps", Claim: "copy", ClaimUID: "5678", Volume: "pvc-5678", SizeBytes: int64(size),
				SourceID: w.before.ID, SourceVolume: "pvc-1234", SourceFSType: "xfs", SourceBytes: gib,
			}, got)
			w.ceph.Fill(testPool, cloneImage, "changed")
			checkSame(t, "what the source has", content, w.ceph.Data(testPool, testImage))
		})
	}
}

// TestCloneChangesNoWanted: Wanted is a value; Make must not change its source.
func TestCloneChangesNoWanted(t *testing.T) {
	w := newCloneWorld(t)
	source := *w.want.Source
	w.mustMake(t)
	w.mustMake(t)
	checkSame(t, "the source", source, *w.want.Source)
}

// TestCloneOfRetired: images of the retired provisioner have no metadata.
func TestCloneOfRetired(t *testing.T) {
	w := newCloneWorld(t)
	w.retire()
	w.checkMakes(t)
	w.checkClone(t)
}

// TestCloneWithoutCluster: a provisioner that does not know its own cluster clones no
// image that belongs to a cluster.
func TestCloneWithoutCluster(t *testing.T) {
	w := newCloneWorld(t)
	w.setJournal("")
	w.want.Owner.Cluster = ""
	if _, err := w.Make(t.Context(), w.want); err == nil || !strings.Contains(err.Error(), "may not read the UID of its own namespace kube-system") {
		t.Errorf("got %v", err)
	}
	w.checkNoClone(t)
	w.retire()
	for range 2 {
		w.mustMake(t)
		w.checkClone(t)
	}
	w.checkIntents(t)
}

// TestCloneRefused: the error says why a source can't be cloned, and nothing is left of
// the attempt.
func TestCloneRefused(t *testing.T) {
	said := errors.New("its source can't be had")
	for _, test := range []struct {
		name   string
		change func(*testing.T, *cloneWorld)
		want   string
	}{
		{"what is known already", func(_ *testing.T, w *cloneWorld) { w.want.Source = &image.Source{Claim: "data", Err: said} }, said.Error()},
		{"less than the source has", func(_ *testing.T, w *cloneWorld) { w.want.SizeBytes = gib - 1 },
			`its source, claim "data", has 1Gi, more than the claim requests: request at least that`},
		{"another cluster", func(_ *testing.T, w *cloneWorld) { w.want.Source.FSID = "elsewhere" },
			`its source, claim "data", is in Ceph cluster "elsewhere": use a StorageClass with its monitors, since`},
		{"an image that is gone", func(_ *testing.T, w *cloneWorld) { w.want.Source.Image = "gone" },
			`its source, claim "data", can't be cloned: describe image "gone" in pool "rbd": image does not exist`},
		{"another volume's image", func(_ *testing.T, w *cloneWorld) { w.want.Source.Volume = "pvc-renamed" },
			`which is not its volume's: its metadata kubernetes.io/created-for/pv/name is "pvc-1234": see the events of volume "pvc-renamed"`},
		{"many snapshots", func(t *testing.T, w *cloneWorld) {
			for i := range 480 {
				w.ceph.AddSnapshot(testPool, testImage, fmt.Sprintf("%03d", i))
			}
			w.before, _ = w.ceph.Image(testPool, testImage)
		}, `its source, claim "data", has nearly as many snapshots and clones as Linux can map an image with`},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newCloneWorld(t)
			test.change(t, w)
			_, err := w.Make(t.Context(), w.want)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v; want %s", err, test.want)
			}
			w.checkNoClone(t)
			w.checkIntents(t)
		})
	}
}

// TestCloneConflict: an image that has the clone's name but is not the clone stays as it
// is.
func TestCloneConflict(t *testing.T) {
	seed := func(size uint64, metadata map[string]string) func(*testing.T, *cloneWorld) {
		return func(t *testing.T, w *cloneWorld) { w.seed(t, cloneImage, rbd.ImageSpec{SizeBytes: size}, metadata) }
	}
	mine := map[string]string{volume.MetaVolume: "pvc-5678", volume.MetaIdentity: testIdentity}
	of := func(metadata map[string]string) func(*testing.T, *cloneWorld) {
		return func(t *testing.T, w *cloneWorld) {
			w.seed(t, "theirs", rbd.ImageSpec{SizeBytes: gib}, metadata)
			w.ceph.Clone(testPool, "theirs", cloneImage)
		}
	}
	for _, test := range []struct {
		name string
		seed func(*testing.T, *cloneWorld)
		want string
	}{
		{"an image with data", func(t *testing.T, w *cloneWorld) {
			seed(gib, nil)(t, w)
			w.ceph.Write(testPool, cloneImage)
		}, "it has data: rename or remove it"},
		{"a larger image", seed(2*gib, nil), "its size differs: rename or remove it"},
		{"a larger image that is marked", seed(2*gib, mine), "its size differs: rename or remove it"},
		{"a smaller image that is marked", seed(gib-1, mine), "its size differs: rename or remove it"},
		{"an image that is marked in part", seed(gib, map[string]string{volume.MetaIdentity: testIdentity}),
			"it is not a clone of the claim's source: rename or remove it"},
		{"somebody's", seed(gib, map[string]string{volume.MetaVolume: "theirs"}),
			`its metadata kubernetes.io/created-for/pv/name is "theirs": rename or remove it`},
		{"another Kubernetes cluster's", seed(gib, map[string]string{volume.MetaCluster: "cluster-2"}), `is "cluster-2", which is another Kubernetes cluster`},
		{"another image's clone", of(map[string]string{volume.MetaVolume: "pvc-1234"}),
			`its metadata kubernetes.io/created-for/pv/name is "pvc-1234": rename or remove it`},
		{"a clone of another image without metadata", of(nil), "it is not a clone of the claim's source: rename or remove it"},
		{"one of other features", func(t *testing.T, w *cloneWorld) {
			seed(gib, nil)(t, w)
			w.ceph.FakeImages(func(i *rbd.Image) {
				if len(i.Metadata) == 0 {
					i.Features = []string{"journaling", rbd.FeatureLayering}
				}
			})
		}, "its features differ: rename or remove it"},
		{"one with another data pool", func(t *testing.T, w *cloneWorld) {
			w.want.DataPool = "data"
			w.seed(t, cloneImage, rbd.ImageSpec{SizeBytes: gib, DataPool: "other"}, nil)
		}, "its data pool differs: rename or remove it"},
		{"an empty one that is in use", func(t *testing.T, w *cloneWorld) {
			seed(gib, nil)(t, w)
			w.ceph.Watch(testPool, cloneImage, "10.0.2.1:0/77")
		}, "its metadata does not name this claim's volume, and a client has it open: if that does not end, rename or remove it"},
		{"an empty one with a snapshot", func(t *testing.T, w *cloneWorld) {
			seed(gib, nil)(t, w)
			w.ceph.AddSnapshot(testPool, cloneImage, "monday")
		}, "its metadata does not name this claim's volume, and it has snapshots: rename or remove it"},
		{"a clone of the source that is in use", func(_ *testing.T, w *cloneWorld) {
			w.ceph.Clone(testPool, testImage, cloneImage)
			w.ceph.Watch(testPool, cloneImage, "10.0.2.1:0/77")
		}, "its metadata does not name this claim's volume, and a client has it open: if that does not end, rename or remove it"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newCloneWorld(t)
			test.seed(t, w)
			before, _ := w.ceph.Image(testPool, cloneImage)
			source, _ := w.ceph.Image(testPool, testImage)
			for range 2 {
				_, err := w.Make(t.Context(), w.want)
				if !errors.Is(err, image.ErrConflict) || !strings.HasSuffix(err.Error(), test.want) {
					t.Errorf("got %v, want %s", err, test.want)
				}
			}
			after, _ := w.ceph.Image(testPool, cloneImage)
			checkSame(t, "the image", before, after)
			got, _ := w.ceph.Image(testPool, testImage)
			checkSame(t, "the source", source, got)
		})
	}
}

// TestCloneSomebodysImage: an image that another client makes in between stays as it is.
func TestCloneSomebodysImage(t *testing.T) {
	w := newCloneWorld(t)
	w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSnapshotImage, Before: func() {
		w.seed(t, cloneImage, rbd.ImageSpec{SizeBytes: 5 * gib}, map[string]string{volume.MetaVolume: "theirs"})
	}})
	for _, want := range []error{rbd.ErrImageExists, image.ErrConflict} {
		if _, err := w.Make(t.Context(), w.want); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	got, _ := w.ceph.Image(testPool, cloneImage)
	checkSame(t, "whose the image is", "theirs", got.Metadata[volume.MetaVolume])
	w.checkSource(t, 0)
}

// TestCloneLostAnswer: the snapshot stays while it is unknown what Ceph does.
func TestCloneLostAnswer(t *testing.T) {
	for _, test := range []struct {
		err       error
		snapshots []string
	}{
		{rbd.ErrTimeout, []string{image.CloneSnapshot("5678")}},
		{rbd.ErrConnectionLost, []string{image.CloneSnapshot("5678")}},
		{rbd.ErrPoolFull, nil},
	} {
		t.Run(test.err.Error(), func(t *testing.T) {
			w := newCloneWorld(t)
			w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallCloneImage, Err: test.err})
			if _, err := w.Make(t.Context(), w.want); !errors.Is(err, test.err) {
				t.Errorf("got %v, want %v", err, test.err)
			}
			source, _ := w.ceph.Image(testPool, testImage)
			checkSame(t, "the snapshots", test.snapshots, source.Snapshots)
			w.checkMakes(t)
			w.checkClone(t)
		})
	}
}

// TestCloneBusySource: while its source is busy, a claim waits only briefly, since it
// occupies a worker. A claim that does not need the source does not wait.
func TestCloneBusySource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newCloneWorld(t)
		unlock := w.Journal.Locks.Lock(w.want.Image.PoolID.Image(testImage))
		begin := time.Now()
		_, err := w.Make(t.Context(), w.want)
		if err == nil || !strings.Contains(err.Error(), `other clones of its source, claim "data", are being made`) {
			t.Errorf("got %v", err)
		}
		checkSame(t, "the wait", 2*time.Second, time.Since(begin))
		w.checkNoClone(t)
		unlock()
		w.checkMakes(t)
		defer w.Journal.Locks.Lock(w.want.Image.PoolID.Image(testImage))()
		begin = time.Now()
		w.checkMakes(t) // it is there
		checkSame(t, "the wait", 0, time.Since(begin))
	})
}

// TestCloneMustFlatten: a clone that depends on too many images, or whose source has too
// many clones, must be flattened before its claim may have it.
func TestCloneMustFlatten(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*testing.T, *cloneWorld)
		want   bool
	}{
		{"the first one", func(*testing.T, *cloneWorld) {}, false},
		{"as deep as may be", func(t *testing.T, w *cloneWorld) { w.chain(t, 3) }, false},
		{"deeper", func(t *testing.T, w *cloneWorld) { w.chain(t, 4) }, true},
		{"where none may depend on another", func(_ *testing.T, w *cloneWorld) { w.MaxCloneDepth = 0 }, true},
		{"of an image with many snapshots", func(_ *testing.T, w *cloneWorld) {
			for i := range 400 {
				w.ceph.AddSnapshot(testPool, testImage, fmt.Sprintf("%03d", i))
			}
		}, true},
		{"of an image with not so many", func(_ *testing.T, w *cloneWorld) {
			for i := range 399 {
				w.ceph.AddSnapshot(testPool, testImage, fmt.Sprintf("%03d", i))
			}
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newCloneWorld(t)
			test.change(t, w)
			for range 2 {
				made := w.mustMake(t)
				got, _ := w.ceph.Image(testPool, cloneImage)
				parent := ""
				if test.want {
					parent = got.Parent
				}
				if made.Flatten != test.want || made.Parent != parent || made.Source == nil {
					t.Errorf("got %+v; the image is %+v", made, got)
				}
			}
			if !test.want {
				return
			}
			if _, found, err := w.Find(t.Context(), w.want); err != nil || found {
				t.Errorf("a claim that is gone: found %v, error %v", found, err)
			}
			if err := w.Pool.FlattenImage(t.Context(), cloneImage); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if made := w.mustMake(t); made.Flatten || made.Parent != "" {
					t.Errorf("after it was flattened: got %+v", made)
				}
			}
			if _, found, err := w.Find(t.Context(), w.want); err != nil || !found {
				t.Errorf("a claim that is gone, after it was flattened: found %v, error %v", found, err)
			}
		})
	}
}

// TestPendingDiscarded: a clone that must be flattened is removed with its claim,
// although flattening has written into it.
func TestPendingDiscarded(t *testing.T) {
	w := newCloneWorld(t)
	w.MaxCloneDepth = 0
	w.mustMake(t)
	w.ceph.Write(testPool, cloneImage)
	if fate, reason, err := w.discard(t); fate != image.Removed || err != nil {
		t.Errorf("got %s, %q, error %v", fate, reason, err)
	}
	w.checkNoClone(t)
}

// TestRemoveCloneSnapshots: snapshots of attempts are removed, people's own stay.
func TestRemoveCloneSnapshots(t *testing.T) {
	w := newCloneWorld(t)
	names := []string{"monday", image.CloneSnapshot("1"), image.CloneSnapshot("2"), "tuesday"}
	for _, name := range names {
		w.ceph.AddSnapshot(testPool, testImage, name)
	}
	others, err := image.RemoveCloneSnapshots(t.Context(), w.Pool, w.before.ID, names)
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, "the others", []string{"monday", "tuesday"}, others)
	source, _ := w.ceph.Image(testPool, testImage)
	checkSame(t, "the snapshots", []string{"monday", "tuesday"}, source.Snapshots)
	w.ceph.AddSnapshot(testPool, testImage, names[1])
	w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot, Err: rbd.ErrTimeout})
	if _, err := image.RemoveCloneSnapshots(t.Context(), w.Pool, w.before.ID, names); !errors.Is(err, rbd.ErrTimeout) {
		t.Errorf("got %v, want %v", err, rbd.ErrTimeout)
	}
}
