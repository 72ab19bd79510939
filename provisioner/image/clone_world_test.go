// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"errors"
	"fmt"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	cloneImage = "kubernetes-dynamic-pvc-5678"
	// content is the data of the source.
	content = "what the source has"
)

// cloneWorld has a source, testImage, and wants a clone of the same size.
type cloneWorld struct {
	*world
	// before is the source's image before it was cloned.
	before rbd.Image
}

func newCloneWorld(t *testing.T) *cloneWorld {
	t.Helper()
	w := &cloneWorld{world: newWorld(t)}
	w.seed(t, testImage, rbd.ImageSpec{SizeBytes: gib}, w.marks(nil))
	w.ceph.Fill(testPool, testImage, content)
	w.before, _ = w.ceph.Image(testPool, testImage)
	w.wantClone("data", "pvc-1234", testImage, "5678")
	return w
}

// wantClone makes the world want a clone of an image.
func (w *cloneWorld) wantClone(claim, pv, of, uid string) {
	w.want.Image.Name, w.want.ClaimUID = "kubernetes-dynamic-pvc-"+uid, uid
	w.want.Owner.Claim, w.want.Owner.Volume = "copy", "pvc-"+uid
	w.want.Source = &image.Source{Claim: claim, Volume: pv, Image: of, FSID: w.ceph.FSID(), FSType: "xfs", CapacityBytes: gib}
}

// made is what Make returns for a clone that is ready.
func (w *cloneWorld) made() image.Made {
	return image.Made{Source: &image.Source{ID: w.before.ID, Volume: "pvc-1234", FSType: "xfs", CapacityBytes: gib}}
}

// checkMakes makes the clone and checks the result, except for the source's names: those
// are known only while the source exists.
func (w *cloneWorld) checkMakes(t *testing.T) {
	t.Helper()
	made := w.mustMake(t)
	if made.Source != nil {
		source := *made.Source
		source.Claim, source.Image, source.FSID = "", "", ""
		made.Source = &source
	}
	checkSame(t, "what was made", w.made(), made)
}

// cutOff lets a process die while it makes the clone, larger than its source.
func (w *cloneWorld) cutOff(t *testing.T, fault rbdtest.FakeFault) {
	t.Helper()
	w.want.SizeBytes = 2 * gib
	w.ceph.FakeCrash(fault)
	if _, err := w.Make(t.Context(), w.want); !errors.Is(err, rbdtest.ErrKilled) {
		t.Fatalf("got %v, want %v", err, rbdtest.ErrKilled)
	}
	w.ceph.ClearFaults()
}

// checkClone checks that the clone is as it should be.
func (w *cloneWorld) checkClone(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", []string{testImage, cloneImage}, w.ceph.Images(testPool))
	checkSame(t, "the remains", nil, w.ceph.Remains(testPool))
	checkSame(t, "the trash", nil, w.ceph.Trash(testPool))
	got, _ := w.ceph.Image(testPool, cloneImage)
	got.ID = "" // any will do
	checkSame(t, "the clone", rbd.Image{
		SizeBytes: w.want.SizeBytes, Features: []string{rbd.FeatureLayering, rbd.FeatureOperations}, Parent: w.before.ID,
		Metadata: w.want.Owner.Marks(),
	}, got)
	checkSame(t, "what the clone has", content, w.ceph.Data(testPool, cloneImage))
	if w.ceph.Dangling(testPool, cloneImage) {
		t.Error("the snapshot that it depends on is gone")
	}
	w.checkSource(t, 1)
}

// checkNoClone checks that nothing is left of an attempt to make one.
func (w *cloneWorld) checkNoClone(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
	checkSame(t, "the remains", nil, w.ceph.Remains(testPool))
	checkSame(t, "the trash", nil, w.ceph.Trash(testPool))
	w.checkSource(t, 0)
}

// checkSource checks that the source is unchanged, except that it has clones.
func (w *cloneWorld) checkSource(t *testing.T, clones int) {
	t.Helper()
	want := w.before
	if want.Kept = clones; clones > 0 {
		want.Features = []string{rbd.FeatureLayering, rbd.FeatureOperations}
	}
	got, _ := w.ceph.Image(testPool, testImage)
	checkSame(t, "the source", want, got)
	checkSame(t, "what the source has", content, w.ceph.Data(testPool, testImage))
}

// grow gives the source another size.
func (w *cloneWorld) grow(t *testing.T, size uint64) {
	t.Helper()
	if err := w.Pool.GrowImage(t.Context(), testImage, size); err != nil {
		t.Error(err)
	}
}

// chain makes n clones, each of the one before, and makes the world want a clone of the
// last.
func (w *cloneWorld) chain(t *testing.T, n int) {
	t.Helper()
	pv, of := "pvc-1234", testImage
	for i := range n {
		w.wantClone(fmt.Sprint("chain-", i), pv, of, fmt.Sprint("9", i))
		if made := w.mustMake(t); made.Flatten {
			t.Fatalf("clone %d is to be flattened", i)
		}
		pv, of = w.want.Owner.Volume, w.want.Image.Name
	}
	w.wantClone("last", pv, of, "5678")
}

// retire makes the source an image of the retired provisioner.
func (w *cloneWorld) retire() {
	w.ceph.ClearMetadata(testPool, testImage)
	w.before, _ = w.ceph.Image(testPool, testImage)
}

// metadataOf returns those of the source's marks that a clone of another owner's image
// has, too.
func (w *cloneWorld) metadataOf(pv string) map[string]string {
	return map[string]string{volume.MetaVolume: pv, volume.MetaIdentity: testIdentity, volume.MetaCluster: testCluster}
}
