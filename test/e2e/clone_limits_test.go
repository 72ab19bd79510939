// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What can't be cloned is refused with an event that says why. No image is made, and no
// snapshot of the source.
func TestCloneRefused(t *testing.T) {
	t.Parallel()
	f, other := newFixture(t), newFixture(t)
	class := f.class("a", nil)
	_, source := f.source("data", class)
	f.source("raw", class, block)
	_, theirs := f.source("theirs", class)
	f.mark(theirs.Spec.RBD.RBDImage, anotherCluster)
	handmade := f.handmade(class)
	for _, test := range []struct {
		name   string
		change func(*corev1.PersistentVolumeClaim)
		want   string // NAME is the fixture's, OTHER the other one's
	}{
		{"smaller", func(c *corev1.PersistentVolumeClaim) { sized("15Mi")(c); from("data")(c) },
			`its source, claim "data", has 16Mi, more than the claim requests: request at least that`},
		{"a-device", func(c *corev1.PersistentVolumeClaim) { block(c); from("data")(c) },
			`its source, claim "data", has the volume mode Filesystem: set spec.volumeMode to it`},
		{"a-file-system", from("raw"), `its source, claim "raw", has the volume mode Block: set spec.volumeMode to it`},
		{"elsewhere", func(c *corev1.PersistentVolumeClaim) {
			from("data")(c)
			c.Spec.StorageClassName = &other.class("a", nil).Name
		}, `its source, claim "data", is in pool "NAME": use a StorageClass with that pool, since "OTHER" is another one`},
		{"itself", from("itself"), `its source, claim "itself", is not bound to a volume yet`},
		{"by-hand", from(handmade.Name), `its source, claim "by-hand-source", has a volume that was not made by this provisioner, and so can't be cloned by it`},
		{"of-another-cluster", from("theirs"), `its source, claim "theirs", has the image "` + theirs.Spec.RBD.RBDImage +
			`", which is not its volume's: its metadata ` + kubernetesCluster + ` is "` + anotherCluster + `", which is another Kubernetes cluster`},
	} {
		claim := f.small(test.name, class, test.change)
		f.event(claim, strings.ReplaceAll(f.named(test.want), "OTHER", other.name))
		f.pending(claim)
	}
	if names, kept := f.snapshots(source.Spec.RBD.RBDImage); len(names)+kept > 0 {
		t.Errorf("the source has the snapshots %v, and %d more", names, kept)
	}
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
	f.must(rig.ImagesMatchVolumes(t.Context(), other.name))
	f.mark(theirs.Spec.RBD.RBDImage, f.clusterUID()) // so that it goes
}

// handmade makes a claim that is bound to a volume made by hand.
func (f *fixture) handmade(class *storagev1.StorageClass) *corev1.PersistentVolumeClaim {
	f.Helper()
	f.rbd("create", "--size=1G", "--image-feature=layering", "by-hand")
	pv := f.static(f.name+"-by-hand", class.Name, corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
		CephMonitors: []string{rig.Ceph.MonitorV1}, RBDPool: f.name, RBDImage: "by-hand",
	}}, nil, "by-hand-source")
	claim := f.claim("by-hand-source", class, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = pv.Name })
	f.bound(claim)
	f.Cleanup(func() {
		ctx := context.WithoutCancel(f.Context())
		_, err := rig.Ceph.Run(ctx, "rbd", "rm", "--no-progress", f.name+"/by-hand")
		// Nothing else deletes it.
		f.must(errors.Join(err, rig.Kube.Client.CoreV1().PersistentVolumeClaims(f.name).Delete(ctx, claim.Name, metav1.DeleteOptions{}),
			rig.Kube.Client.CoreV1().PersistentVolumes().Delete(ctx, pv.Name, metav1.DeleteOptions{})))
	})
	return claim
}

// A clone waits for its source: until that exists, until it has its volume, and until its
// image is back.
func TestCloneHeals(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", func(c *storagev1.StorageClass) { c.Parameters["adminSecretName"] = f.name + "-late" })
	claim := f.small("copy", class, from("data"))
	f.event(claim, f.named(`its source, claim "data", is not in namespace "NAME": make it, or correct its name in spec.dataSource`))
	sourceClaim := f.small("data", class)
	f.event(sourceClaim, "secret does not exist")
	f.event(claim, `its source, claim "data", is not bound to a volume yet: it will be cloned once it is bound`)
	f.pending(claim)
	f.secret(namespace, f.name+"-late", corev1.SecretTypeOpaque, f.adminKey)
	source := f.bound(sourceClaim)
	f.checkClone(claim, f.bound(claim), source, "16Mi")

	f.rbd("rename", source.Spec.RBD.RBDImage, "aside")
	claim = f.small("later", class, from("data"))
	f.event(claim, fmt.Sprintf(`its source, claim "data", can't be cloned: describe image %q in pool %q: image does not exist`,
		source.Spec.RBD.RBDImage, f.name))
	f.rbd("rename", "aside", source.Spec.RBD.RBDImage)
	f.checkClone(claim, f.bound(claim), source, "16Mi")
}

// A chain of clones: one that would depend on more than four images is flattened before
// its claim gets it, and the next ones count from there. All have the bytes of the first,
// whatever is deleted.
func TestCloneDepth(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	sourceClaim, source := f.source("data-0", class)
	want := f.read(source.Spec.RBD.RBDImage)
	flattened := f.metric("rbd_provisioner_flattened_clones_total")
	claims, volumes := []*corev1.PersistentVolumeClaim{sourceClaim}, []*corev1.PersistentVolume{source}
	const row = 6
	for i := 1; i <= row; i++ {
		claim := f.small(fmt.Sprint("data-", i), class, from(fmt.Sprint("data-", i-1)))
		claims, volumes = append(claims, claim), append(volumes, f.bound(claim))
	}
	image := func(i int) string { return volumes[i].Spec.RBD.RBDImage }
	for i := range row + 1 {
		f.same(fmt.Sprint("clone ", i), want, f.read(image(i)))
	}
	for i := 1; i <= row; i++ {
		want := image(i - 1)
		if i == 5 {
			want = ""
		}
		if parent := f.lineage(image(i)).Parent.Image; parent != want {
			t.Errorf("clone %d has the parent %q, want %q", i, parent, want)
		}
	}
	if more := f.metric("rbd_provisioner_flattened_clones_total") - flattened; more < 1 {
		t.Errorf("%v clones were counted", more)
	}
	// Nothing depends on these any more. They are removed from the last on, each once its
	// clone is gone.
	for i := range 5 {
		f.delete(claims[i])
	}
	for i := 4; i >= 0; i-- {
		f.gone(volumes[i])
	}
	for i := 5; i <= row; i++ {
		f.same(fmt.Sprint("clone ", i, " alone"), want, f.read(image(i)))
	}
	f.delete(claims[5])
	f.delete(claims[6])
	f.nothingLeft()
}

// With 0 as the flag's value, every clone is flattened. A new leader continues with the
// clones that its predecessor was to flatten.
func TestCloneDepthZero(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	name := "example.com/" + f.name
	p := start(t, []string{"PROVISIONER_NAME=" + name}, "-leader-election=false", "-max-clone-depth=0")
	class := f.class("a", func(c *storagev1.StorageClass) { c.Provisioner = name })
	sourceClaim, source := f.source("data", class)
	want := f.read(source.Spec.RBD.RBDImage)
	var claims []*corev1.PersistentVolumeClaim
	var volumes []*corev1.PersistentVolume
	for i := range 4 {
		claims = append(claims, f.small(fmt.Sprint("copy-", i), class, from("data")))
	}
	f.event(claims[0], "its clone is being flattened")
	p.Kill()
	f.must(p.Start(t.Context()))
	for _, claim := range claims {
		pv := f.bound(claim)
		volumes = append(volumes, pv)
		if parent := f.lineage(pv.Spec.RBD.RBDImage).Parent.Image; parent != "" {
			t.Errorf("clone %s depends on %s", pv.Name, parent)
		}
		f.same("a flattened clone", want, f.read(pv.Spec.RBD.RBDImage))
	}
	f.delete(sourceClaim)
	f.gone(source)
	for i, claim := range claims {
		f.delete(claim)
		f.gone(volumes[i]) // before this provisioner ends
	}
	f.nothingLeft()
}

// metric returns the value of a metric of the provisioner that all tests share.
func (f *fixture) metric(name string) float64 {
	f.Helper()
	page, err := get(f.Context(), rig.main.URL+"/metrics")
	f.must(err)
	found := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(page)
	if found == nil {
		f.Fatalf("there is no metric %s", name)
	}
	value, err := strconv.ParseFloat(found[1], 64)
	f.must(err)
	return value
}

// In a pool that is full, by its quota, no clone is made, and nothing is left of the
// attempt. Once there is room, it is made without help.
func TestCloneInFullPool(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	_, source := f.source("data", class)
	first := f.small("first", class, from("data"))
	f.bound(first)
	f.fill()
	claim := f.small("copy", class, from("data"))
	f.event(claim, "pool is full or over its quota")
	f.pending(claim)
	// Existing volumes can be deleted all the same.
	f.delete(first)
	f.quota("0")
	pv := f.bound(claim)
	f.checkClone(claim, pv, source, "16Mi")
	f.same("source and clone", f.read(source.Spec.RBD.RBDImage), f.read(pv.Spec.RBD.RBDImage))
	f.eventually(func(context.Context) error {
		if names, kept := f.snapshots(source.Spec.RBD.RBDImage); len(names) > 0 || kept != 1 {
			return fmt.Errorf("the source has the snapshots %v, and %d more", names, kept)
		}
		return nil
	})
}
