// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestErasureCodedDataPool(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	data := f.name + "-data"
	f.must(rig.Ceph.CreateErasurePool(t.Context(), data))
	f.cephUser("admin", f.name, data)
	pv := f.bound(f.claim("data", f.class("ec", func(c *storagev1.StorageClass) { c.Parameters["dataPool"] = data }), nil))
	want := image{Size: 1 << 30, Features: []string{"data-pool", "layering"}, DataPool: data}
	if diff := cmp.Diff(want, f.image(f.name, pv.Spec.RBD.RBDImage)); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
}

// An erasure-coded pool can't hold images, and must allow overwrites to hold their data.
// The two mistakes have different remedies.
func TestErasureCodedPoolMistakes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	good, fixed := f.name+"-good", f.name+"-fixed"
	f.must(rig.Ceph.CreateErasurePool(t.Context(), good))
	_, err := rig.Ceph.Run(t.Context(), "ceph", "osd", "pool", "create", fixed, "8", "8", "erasure", "rig")
	f.must(err)
	f.cephUser("admin", f.name, good, fixed)

	class := func(suffix, pool, data string) *storagev1.StorageClass {
		return f.class(suffix, func(c *storagev1.StorageClass) { c.Parameters["pool"], c.Parameters["dataPool"] = pool, data })
	}
	const remedy = `: an erasure-coded pool can't hold images: name a replicated pool as pool in the class, and NAME-good as dataPool`
	alone := f.claim("alone", class("alone", good, ""), nil)
	both := f.claim("both", class("both", good, fixed), nil)
	data := f.claim("data", class("data", f.name, fixed), nil)
	f.event(alone, f.named(remedy))
	f.event(both, f.named(remedy))
	f.event(data, f.named("not supported by the cluster: an erasure-coded data pool needs ceph osd pool set NAME-fixed allow_ec_overwrites true"))
	f.pending(alone)
	f.pending(both)
	f.pending(data)

	_, err = rig.Ceph.Run(t.Context(), "ceph", "osd", "pool", "set", fixed, "allow_ec_overwrites", "true")
	f.must(err)
	f.bound(data)
	f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(t.Context(), f.name+"-alone", metav1.DeleteOptions{}))
	class("alone", f.name, good)
	f.bound(alone)
}
