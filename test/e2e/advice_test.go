// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// copied gives a claim the annotations of one that is bound.
func copied(c *corev1.PersistentVolumeClaim) {
	c.Annotations = map[string]string{
		"pv.kubernetes.io/bind-completed":               "yes",
		"volume.kubernetes.io/storage-provisioner":      "ceph.com/rbd",
		"volume.beta.kubernetes.io/storage-provisioner": "ceph.com/rbd",
	}
}

// names has a claim ask for a volume by its name.
func names(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
}

// Claims that Kubernetes will never bind, or not before somebody makes their volume, get no
// image, and are told what to do.
func TestClaimsThatWaitInVain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	others := f.claim("others", f.class("others", func(c *storagev1.StorageClass) { c.Provisioner = "example.com/other" }), names("missing"))
	// served makes the volume that a claim asks for.
	served := func(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
		f.rbd("create", "--size=1G", "--image-feature=layering", claim.Name)
		f.static(claim.Spec.VolumeName, class.Name, corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
			CephMonitors: []string{rig.Ceph.MonitorV1}, RBDPool: f.name, RBDImage: claim.Name,
		}}, map[string]string{"pv.kubernetes.io/provisioned-by": "ceph.com/rbd"}, claim.Name)
		return f.bound(claim)
	}
	in := f.claim("in-time", class, names(f.name+"-in-time"))
	made := map[*corev1.PersistentVolumeClaim]*corev1.PersistentVolume{in: served(in)}

	const lost = "the claim has the annotation pv.kubernetes.io/bind-completed and no volume, so Kubernetes has none made: " +
		"bring its volume back or, if the annotation was copied, make the claim anew without it and without spec.volumeName"
	told := map[*corev1.PersistentVolumeClaim]string{
		f.claim("copied", class, copied): lost,
		f.claim("copied-with-volume", class, func(c *corev1.PersistentVolumeClaim) { copied(c); names("missing")(c) }): lost,
	}
	late := f.claim("late", class, names(f.name+"-late"))
	told[late] = `there is no volume "` + late.Spec.VolumeName + `", which spec.volumeName asks for: make that volume, or make the claim anew without spec.volumeName`
	for claim, text := range told {
		f.event(claim, text)
		if events := f.events(t.Context(), claim.UID); strings.Contains(events, "ProvisioningSucceeded") {
			t.Errorf("claim %s: %s", claim.Name, events)
		}
	}
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
	for _, claim := range []*corev1.PersistentVolumeClaim{others, in} {
		if events := f.events(t.Context(), claim.UID); strings.Contains(events, "there is no volume") {
			t.Errorf("claim %s: %s", claim.Name, events)
		}
	}
	made[late] = served(late)
	for claim, pv := range made {
		f.delete(claim)
		f.gone(pv) // before its class
	}
}

// Servers that know VolumeAttributesClasses bind no claim that names one to a volume without
// it: the claim is refused before it gets an image. A claim that is bound still grows.
func TestVolumeAttributesClass(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", growing)
	f.source("source", class)
	attributes := func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeAttributesClassName = ptr.To("gold") }
	for name, change := range map[string]func(*corev1.PersistentVolumeClaim){
		"plain": attributes,
		"clone": func(c *corev1.PersistentVolumeClaim) { attributes(c); from("source")(c) },
	} {
		claim := f.claim(name, class, change)
		if claim.Spec.VolumeAttributesClassName == nil {
			f.bound(claim) // a server that does not know the field dropped it
			continue
		}
		f.event(claim, `the claim asks for the VolumeAttributesClass "gold", but rbd volumes have no such attributes: `+
			"make the claim anew without spec.volumeAttributesClassName")
		f.pending(claim)
	}
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))

	bound := f.claim("bound", class, block)
	f.bound(bound)
	_, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(f.name).Patch(t.Context(), bound.Name,
		types.MergePatchType, []byte(`{"spec":{"volumeAttributesClassName":"gold"}}`), metav1.PatchOptions{})
	f.must(err)
	f.ask(bound, "2Gi")
	f.grown(bound, "2Gi")
}
