// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A provisioner is killed while it makes images, the claims are deleted while
// none runs, and the next one leaves no image behind.
func TestCrashLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	name := "example.com/" + f.name
	class := f.class("a", func(c *storagev1.StorageClass) { c.Provisioner = name })
	env := []string{"PROVISIONER_NAME=" + name}

	orphans := 0
	// A kill between image and volume is likely, but not certain.
	for round := 0; orphans == 0 && round < 5; round++ {
		p := start(t, env, "-leader-election=false")
		for i := range 40 {
			f.claim(fmt.Sprintf("claim-%d-%d", round, i), class, nil)
		}
		p.Kill()
		orphans = f.deleteClaims()
	}
	t.Logf("%d images were left without a claim or a volume", orphans)
	if orphans == 0 {
		t.Error("no kill hit a moment between image and volume")
	}

	p := start(t, env, "-leader-election=false")
	f.eventually(func(ctx context.Context) error {
		volumes, err := f.volumes(ctx, f.name)
		if err == nil && len(volumes) > 0 {
			err = fmt.Errorf("%d volumes are left", len(volumes))
		}
		if err == nil {
			err = rig.ImagesMatchVolumes(ctx, f.name)
		}
		return err
	})
	removed := strings.Count(log(t, p), "Removed an image that an earlier attempt made")
	metrics, err := get(t.Context(), p.URL+"/metrics")
	f.must(err)
	want := fmt.Sprintf(`rbd_provisioner_recovered_images_total{outcome="removed"} %d`, removed)
	if !strings.Contains(metrics, want) {
		t.Errorf("the metrics do not have %q", want)
	}
}

// deleteClaims deletes all claims, waits until they are gone, and returns how many
// images no volume names then.
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
