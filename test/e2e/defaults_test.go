// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/test/cluster"
)

// layout is what "rbd info" says about how an image keeps its data.
type layout struct {
	Features    []string `json:"features"`
	Order       int      `json:"order"`
	StripeUnit  int      `json:"stripe_unit"` // with the feature striping
	StripeCount int      `json:"stripe_count"`
	DataPool    string   `json:"data_pool"`
	JournalPool string   `json:"journal_pool"`
}

// The defaults for new images, in Ceph's central configuration or in that of the pool, do
// not change what is made for claims, clones included.
func TestDefaultsOfCeph(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]func(*fixture) []string{
		"of the cluster": func(f *fixture) []string { return []string{"ceph", "config", "set", "client." + f.name + "-admin"} },
		"of the pool":    func(f *fixture) []string { return []string{"rbd", "config", "pool", "set", f.name} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			for option, value := range map[string]string{
				"rbd_default_stripe_unit": "65536", "rbd_default_stripe_count": "4", "rbd_default_order": "20",
				"rbd_default_features": "125", "rbd_default_data_pool": "rbd", "rbd_journal_pool": "rbd",
			} {
				run := append(command(f), option, value)
				_, err := rig.Ceph.Run(t.Context(), run[0], run[1:]...)
				f.must(err)
			}
			class := f.class("a", nil)
			data := f.bound(f.small("data", class))
			clone := f.bound(f.small("copy", class, from("data")))
			for _, pv := range []*corev1.PersistentVolume{data, clone} {
				var got layout
				f.must(rig.Ceph.JSON(t.Context(), &got, "rbd", "info", f.name+"/"+pv.Spec.RBD.RBDImage))
				if diff := cmp.Diff(layout{Features: []string{"layering", "operations"}, Order: 22}, got); diff != "" {
					t.Errorf("image of volume %s (-want +got):\n%s", pv.Name, diff)
				}
			}
		})
	}
}

// Earlier versions followed Ceph's defaults for stripes, and were then cut off. The image is
// the claim's all the same; once the claim is gone, it is removed, and not only moved to the
// trash, as the pool has it for what people remove.
func TestStripedImages(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, err := rig.Ceph.Run(t.Context(), "rbd", "config", "pool", "set", f.name, "rbd_move_to_trash_on_remove", "true")
	f.must(err)
	f.must(rig.Kube.Client.CoreV1().Secrets(namespace).Delete(t.Context(), f.name+"-admin", metav1.DeleteOptions{}))
	class := f.class("a", nil)
	used, unused := f.claim("used", class, nil), f.claim("unused", class, nil)
	image := func(claim *corev1.PersistentVolumeClaim) string { return "kubernetes-dynamic-pvc-" + string(claim.UID) }
	for _, claim := range []*corev1.PersistentVolumeClaim{used, unused} {
		f.event(claim, "secret does not exist")
		f.rbd("create", "--size=1G", "--image-feature=layering,striping", "--stripe-unit=65536", "--stripe-count=4", image(claim))
	}
	f.rbd("snap", "create", "--no-progress", image(unused)+"@hold")
	f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey)
	if got := f.bound(used).Spec.RBD.RBDImage; got != image(used) {
		t.Errorf("got the image %s", got)
	}

	f.event(unused, "its metadata does not name this claim's volume, and it has snapshots")
	f.delete(unused)
	f.rbd("snap", "rm", "--no-progress", image(unused)+"@hold")
	f.must(cluster.Eventually(t.Context(), patience, func(ctx context.Context) error { return rig.ImagesMatchVolumes(ctx, f.name) }))
}
