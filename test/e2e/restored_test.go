// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// A volume and its claim were deleted, and are restored while their image is still in the
// trash. The image stays there beyond its time, and is back in place after the command
// that the event names.
func TestRestoredFromTrash(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		suffix string // of the volume's new name
		byHand bool   // with no more than docs/trash.md has
	}{
		"by hand":            {byHand: true},
		"from a backup":      {},
		"under another name": {suffix: "-restored"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			// Long enough to make the volume again before the image is removed.
			class := f.class("a", func(c *storagev1.StorageClass) { c.Parameters["trashRetention"] = "10s" })
			claim := f.claim("data", class, nil)
			pv := f.bound(claim)
			image := pv.Spec.RBD.RBDImage
			backup, err := f.live(t.Context(), claim)
			f.must(err)
			f.delete(claim)
			f.volumeGone(pv)
			id := f.trashed(image)

			again := copyOf(pv, pv.Name+test.suffix)
			if test.byHand {
				maps.DeleteFunc(again.Annotations, func(key, _ string) bool { return strings.HasPrefix(key, "rbd.ceph.com/") })
			}
			again = f.create(again)
			claim = f.claim(claim.Name, class, func(c *corev1.PersistentVolumeClaim) {
				c.Spec = *backup.Spec.DeepCopy()
				c.Spec.VolumeName = again.Name
			})
			f.bound(claim)
			if test.byHand {
				// Nothing says that its image is marked, so the provisioner looks for it.
				f.told(again, "ImageNotFound", "rbd trash ls --pool "+f.name)
			}
			// Sent when the image was due.
			event := f.told(again, "ImageInTrash", fmt.Sprintf("image %q in pool %q was deleted with volume %q", image, f.name, pv.Name))
			if now := f.trashed(image); now != id {
				t.Errorf("the trash has the ID %s, want %s", now, id)
			}
			f.run(event, "rbd")
			f.rbd("info", image)
			f.must(rig.ImagesMatchVolumes(t.Context(), f.name))

			if test.suffix != "" {
				f.annotate(again, map[string]string{formerCluster: f.clusterUID()})
				f.owned(again)
			}
			f.delete(claim)
			f.volumeGone(again)
			if !test.byHand {
				f.trashed(image) // for its time, as before
			}
			f.gone(again)
			f.nothingLeft()
		})
	}
}
