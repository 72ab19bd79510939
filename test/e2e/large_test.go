// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// sized makes a claim of a size.
func (f *fixture) sized(name, size string, class *storagev1.StorageClass) *corev1.PersistentVolumeClaim {
	f.Helper()
	return f.claim(name, class, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
	})
}

// shrinks waits until an image in the trash is smaller than it was, and returns its size.
func (f *fixture) shrinks(id string, was int64) int64 {
	f.Helper()
	var now image
	f.eventually(func(ctx context.Context) error {
		err := rig.Ceph.JSON(ctx, &now, "rbd", "info", "--pool", f.name, "--image-id", id)
		if err == nil && now.Size >= was {
			err = fmt.Errorf("the image has %d bytes, which is not less than %d", now.Size, was)
		}
		return err
	})
	return now.Size
}

// A claim that asks for far too much gets a warning, and its volume. The removal of that
// image takes months. It keeps no other image of the pool from being removed, whoever removes
// those, and a process that is killed leaves the next one what it has done.
func TestHugeVolume(t *testing.T) {
	byEachRemover(t, func(t *testing.T, f *fixture, by string) {
		own := "example.com/" + f.name
		p := start(t, []string{"PROVISIONER_NAME=" + own}, "-leader-election=false")
		class := f.class("a", func(c *storagev1.StorageClass) { c.Provisioner = own })
		claim := f.sized("huge", "100Pi", class)
		pv := f.bound(claim)
		f.event(claim, "the volume has 100Pi, which is above 1Pi (-warn-volume-size)")
		f.delete(claim)
		f.volumeGone(pv)
		id := f.trashed(pv.Spec.RBD.RBDImage)
		left := f.shrinks(id, 100<<50)
		if _, err := rig.Ceph.Run(t.Context(), "rbd", "trash", "restore", "--pool", f.name, id); err == nil {
			t.Error("an image that has lost a part was restored")
		}

		var small []*corev1.PersistentVolume
		for i := range 3 {
			claim := f.claim(fmt.Sprint("small-", i), class, nil)
			small = append(small, f.bound(claim))
			if events := f.events(t.Context(), claim.UID); strings.Contains(events, "LargeVolume") {
				t.Errorf("a small claim is warned, too: %s", events)
			}
			f.delete(claim)
		}
		for _, pv := range small {
			f.gone(pv)
			f.purgedBy(p, pv, by)
		}
		left = f.shrinks(id, left)

		p.Kill()
		f.must(p.Start(t.Context()))
		f.shrinks(id, left)
		metrics, err := get(t.Context(), p.URL+"/metrics")
		f.must(err)
		if want := `rbd_provisioner_trash_images{state="waiting"} 1`; !strings.Contains(metrics, want) {
			t.Errorf("the metrics do not have %q", want)
		}

		// Nobody waits for the rest: without its entry, the image is not in the trash.
		p.Kill()
		_, err = rig.Ceph.Run(t.Context(), "rados", "--pool", f.name, "rmomapkey", "rbd_trash", "id_"+id)
		f.must(err)
	})
}

// A volume that grows beyond what is likely is warned of, too.
func TestHugeGrowth(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	own := "example.com/" + f.name
	start(t, []string{"PROVISIONER_NAME=" + own}, "-leader-election=false", "-warn-volume-size=2Gi")
	class := f.class("a", func(c *storagev1.StorageClass) {
		growing(c)
		c.Provisioner = own
	})
	claim := f.claim("grows", class, block)
	pv := f.bound(claim)
	f.ask(claim, "3Gi")
	f.grown(claim, "3Gi")
	f.event(claim, "the volume has 3Gi, which is above 2Gi (-warn-volume-size)")
	if events := f.events(t.Context(), claim.UID); strings.Contains(events, "has 1Gi") {
		t.Errorf("it was warned of 1Gi: %s", events)
	}
	f.delete(claim)
	f.gone(pv)
}
