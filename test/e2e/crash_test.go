// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A provisioner is killed after it made images whose volumes it could not save. Their
// claims are deleted while no provisioner runs, and the next one leaves no image behind.
func TestCrashLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	all := installed(t)
	saving := all[slices.IndexFunc(all, func(r right) bool { return r.String() == "create persistentvolumes" })]
	r := newRestricted(t, f, "crash", all, saving, nil, []string{"-leader-election=false"})
	const count = 10
	for i := range count {
		r.claim(fmt.Sprint("claim-", i), r.class, nil)
	}
	r.eventually(func(ctx context.Context) error {
		images, err := rig.Ceph.Images(ctx, f.name)
		if err == nil && len(images) < count {
			err = fmt.Errorf("%d images of %d are made", len(images), count)
		}
		return err
	})
	r.process.Kill()
	if orphans := r.deleteClaims(); orphans != count {
		t.Errorf("%d images are left without a claim or a volume, want %d", orphans, count)
	}

	r.grant(r.ns, r.named(all), r.named(all))
	r.must(r.process.Start(t.Context()))
	r.eventually(func(ctx context.Context) error { return rig.ImagesMatchVolumes(ctx, f.name) })
	metrics, err := get(t.Context(), r.process.URL+"/metrics")
	r.must(err)
	if want := fmt.Sprintf("rbd_provisioner_recovered_images_total{outcome=\"removed\"} %d\n", count); !strings.Contains(metrics, want) {
		t.Errorf("the metrics do not have %q", want)
	}
}

// deleteClaims deletes all claims, waits until they are gone, and returns how many images
// no volume names then.
func (f *fixture) deleteClaims() int {
	f.Helper()
	client := rig.Kube.Client.CoreV1().PersistentVolumeClaims(f.name)
	f.must(client.DeleteCollection(f.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	f.eventually(func(ctx context.Context) error {
		claims, err := client.List(ctx, metav1.ListOptions{})
		if err == nil && len(claims.Items) > 0 {
			err = fmt.Errorf("%d claims are left", len(claims.Items))
		}
		return err
	})
	volumes, err := f.volumes(f.Context(), f.name)
	f.must(err)
	named := map[string]bool{}
	for _, v := range volumes {
		named[v.Spec.RBD.RBDImage] = true
	}
	images, err := rig.Ceph.Images(f.Context(), f.name)
	f.must(err)
	return len(slices.DeleteFunc(images, func(image string) bool { return named[image] }))
}
