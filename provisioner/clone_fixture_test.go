// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/flatten"
	"ceph.com/rbd-provisioner/provisioner/orphan"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// cloneFixture has a claim with a volume, and a second claim that asks for a clone of it.
// fixture.options is then that of the second claim.
type cloneFixture struct {
	*fixture
	source controller.ProvisionOptions
	// volume is the source's, as in the cache.
	volume *corev1.PersistentVolume
	// before is the source's image before it was cloned.
	before rbd.Image
}

const cloneImage = "kubernetes-dynamic-pvc-5678"

func newCloneFixture(t *testing.T) *cloneFixture {
	t.Helper()
	f := &cloneFixture{fixture: newFixture(t)}
	f.volume = f.bind(t, f.mustProvision(t))
	f.source = f.options
	f.ceph.Fill(testPool, testImage, "what the source has")
	f.before, _ = f.ceph.Image(testPool, testImage)
	f.options = f.cloneOf("data", "copy", "5678")
	f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
	return f
}

// cloneOf returns the options for a claim that asks for a clone.
func (f *cloneFixture) cloneOf(source, name string, uid types.UID) controller.ProvisionOptions {
	o := options()
	o.StorageClass = f.options.StorageClass
	o.PVC.Name, o.PVC.UID, o.PVName = name, uid, "pvc-"+string(uid)
	o.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: source}
	return o
}

// bind saves a volume and binds the claim to it, in the API and in the cache.
func (f *cloneFixture) bind(t *testing.T, pv *corev1.PersistentVolume) *corev1.PersistentVolume {
	t.Helper()
	claim := f.options.PVC
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID}
	pv = f.save(t, pv)
	if err := f.volumes.Add(pv); err != nil {
		t.Fatal(err)
	}
	f.putLive(t, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Status.Phase = pv.Name, corev1.ClaimBound
	})
	f.Seen(nil, pv)
	pool, err := f.access.Open(t.Context(), f.location(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := (orphan.Saved{Journal: f.journal}).Visit(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	return pv
}

// change changes the claim that asks for the clone.
func (f *cloneFixture) change(t *testing.T, change func(*corev1.PersistentVolumeClaim)) {
	t.Helper()
	change(f.options.PVC)
	f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
}

// changeSource changes the source's claim, as the API server has it.
func (f *cloneFixture) changeSource(t *testing.T, change func(*corev1.PersistentVolumeClaim)) {
	t.Helper()
	claims := f.client.CoreV1().PersistentVolumeClaims("apps")
	claim, err := claims.Get(t.Context(), "data", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	change(claim)
	if _, err := claims.Update(t.Context(), claim, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// changeVolume changes the source's volume, as in the cache.
func (f *cloneFixture) changeVolume(t *testing.T, change func(*corev1.PersistentVolume)) {
	t.Helper()
	pv := f.volume.DeepCopy()
	change(pv)
	if err := f.volumes.Update(pv); err != nil {
		t.Fatal(err)
	}
}

// release deletes a claim and its volume from Kubernetes, but not the image.
func (f *cloneFixture) release(t *testing.T, o controller.ProvisionOptions, pv *corev1.PersistentVolume) {
	t.Helper()
	if err := f.client.CoreV1().PersistentVolumeClaims("apps").Delete(t.Context(), o.PVC.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(f.withLog(t.Context()), pv); err != nil {
		t.Fatalf("delete %s: %v", pv.Name, err)
	}
	if err := f.volumes.Delete(pv); err != nil {
		t.Fatal(err)
	}
	if err := f.client.CoreV1().PersistentVolumes().Delete(t.Context(), pv.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// checkClone checks that the clone is as it should be.
func (f *cloneFixture) checkClone(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", []string{testImage, cloneImage}, f.ceph.Images(testPool))
	image, _ := f.ceph.Image(testPool, cloneImage)
	image.ID = "" // any will do
	marks := map[string]string{volume.MetaClaim: "copy", volume.MetaClaimNamespace: "apps", volume.MetaVolume: "pvc-5678", volume.MetaIdentity: testIdentity}
	if uid := f.clusterUID; uid != "" {
		marks[volume.MetaCluster] = uid
	}
	checkSame(t, "the clone", rbd.Image{
		SizeBytes: 1 << 30, Features: []string{rbd.FeatureLayering, rbd.FeatureOperations}, Parent: f.before.ID,
		Metadata: marks,
	}, image)
	checkSame(t, "what the clone has", "what the source has", f.ceph.Data(testPool, cloneImage))
	f.checkSource(t, 1)
}

// checkSource checks that the source is unchanged, except that it has clones.
func (f *cloneFixture) checkSource(t *testing.T, clones int) {
	t.Helper()
	want := f.before
	if want.Kept = clones; clones > 0 {
		want.Features = []string{rbd.FeatureLayering, rbd.FeatureOperations}
	}
	got, _ := f.ceph.Image(testPool, testImage)
	checkSame(t, "the source", want, got)
	checkSame(t, "what the source has", "what the source has", f.ceph.Data(testPool, testImage))
}

// checkNoClone checks that nothing is left of an attempt to make one.
func (f *cloneFixture) checkNoClone(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
	checkSame(t, "the remains", nil, f.ceph.Remains(testPool))
	checkSame(t, "the trash", nil, f.ceph.Trash(testPool))
	f.checkSource(t, 0)
}

// next makes the fixture's claim ask for a clone of another claim's volume.
func (f *cloneFixture) next(t *testing.T, source, name string, uid types.UID) {
	t.Helper()
	f.options = f.cloneOf(source, name, uid)
	f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
}

// chain makes clones of clones, n of them.
func (f *cloneFixture) chain(t *testing.T, n int) {
	t.Helper()
	last := "data"
	for i := range n {
		name := fmt.Sprintf("chain-%d", i+1)
		f.next(t, last, name, types.UID(fmt.Sprint(i+1)))
		f.bind(t, f.mustProvision(t))
		last = name
	}
}

// mustWait calls Provision, which must say that the clone is being flattened.
func (f *cloneFixture) mustWait(t *testing.T) {
	t.Helper()
	if _, state, err := f.provision(t.Context(), t); !errors.Is(err, flatten.ErrFlattening) || state != controller.ProvisioningInBackground {
		t.Errorf("got state %s, error %v; want flatten.ErrFlattening", state, err)
	}
}

func chainImage(i int) string { return fmt.Sprintf("%s%d", "kubernetes-dynamic-pvc-", i) }

// retired makes the source a volume of the retired provisioner.
func (f *cloneFixture) retired(t *testing.T) {
	t.Helper()
	f.changeVolume(t, retire)
	f.ceph.ClearMetadata(testPool, testImage)
	f.before, _ = f.ceph.Image(testPool, testImage)
}

var block = ptr.To(corev1.PersistentVolumeBlock)
