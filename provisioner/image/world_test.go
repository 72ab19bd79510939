// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"errors"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	testIdentity = "here"
	testCluster  = "cluster-1"
	testPool     = "rbd"
	testImage    = "kubernetes-dynamic-pvc-1234"
	gib          = 1 << 30
)

// world has a Maker and its Ceph cluster.
type world struct {
	image.Maker
	ceph *rbdtest.Cluster
	want image.Wanted
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{ceph: rbdtest.NewCluster("10.0.0.1:6789")}
	w.ceph.AddPool(testPool)
	w.ceph.AddErasurePool("data", true)
	w.ceph.AddErasurePool("other", true)
	cluster, err := w.ceph.Connect(t.Context(), w.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	pool, err := cluster.OpenPool(t.Context(), testPool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	w.Maker = image.Maker{Pool: pool, MaxCloneDepth: 4}
	w.setJournal(testCluster)
	w.want = image.Wanted{
		Image:     volume.PoolID{FSID: w.ceph.FSID(), Pool: testPool}.Image(testImage),
		SizeBytes: gib,
		Owner:     volume.Owner{Volume: "pvc-1234", Identity: testIdentity, Cluster: testCluster, Claim: "data", Namespace: "apps"},
		ClaimUID:  "1234",
	}
	return w
}

// setJournal gives the Maker the journal of a cluster with a UID.
func (w *world) setJournal(uid string) {
	w.Journal = journal.New(uid, "ceph.com/rbd", testIdentity)
}

// marks returns the metadata of the wanted image with some entries replaced; an empty
// value removes one.
func (w *world) marks(entries map[string]string) map[string]string {
	marks := w.want.Owner.Marks()
	maps.Copy(marks, entries)
	maps.DeleteFunc(marks, func(_, value string) bool { return value == "" })
	return marks
}

// seed makes an image without the Maker.
func (w *world) seed(t *testing.T, name string, spec rbd.ImageSpec, metadata map[string]string) {
	t.Helper()
	if err := errors.Join(w.Pool.CreateImage(t.Context(), name, spec), w.Pool.SetMetadata(t.Context(), name, metadata)); err != nil {
		t.Fatal(err)
	}
}

func (w *world) mustMake(t *testing.T) image.Made {
	t.Helper()
	made, err := w.Make(t.Context(), w.want)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// checkMade checks that the wanted image, which is no clone, is as it should be and has
// an intent, and that there is nothing else.
func (w *world) checkMade(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
	checkSame(t, "the remains", nil, w.ceph.Remains(testPool))
	checkSame(t, "the trash", nil, w.ceph.Trash(testPool))
	got, _ := w.ceph.Image(testPool, testImage)
	got.ID = "" // any will do
	checkSame(t, "the image", rbd.Image{SizeBytes: gib, Features: []string{rbd.FeatureLayering}, Metadata: w.marks(nil)}, got)
	w.checkIntents(t, testImage)
}

func (w *world) checkNothing(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", nil, w.ceph.Images(testPool))
	checkSame(t, "the remains", nil, w.ceph.Remains(testPool))
	checkSame(t, "the trash", nil, w.ceph.Trash(testPool))
}

// checkIntents checks which images have an intent.
func (w *world) checkIntents(t *testing.T, want ...string) {
	t.Helper()
	got := slices.Sorted(maps.Keys(w.ceph.Notes(testPool)[w.Journal.Intents.Object]))
	checkSame(t, "the intents", want, got)
}

func checkSame[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
