// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// A claim that names no class gets the default one, by either annotation. Only one class
// at a time may be the default, so this test runs alone.
func TestDefaultClass(t *testing.T) {
	f := newFixture(t)
	for _, annotation := range []string{"storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"} {
		prefix, _, _ := strings.Cut(annotation, ".kubernetes.io")
		suffix := strings.ReplaceAll(prefix, ".", "-")
		t.Run(suffix, func(t *testing.T) {
			class := f.class(suffix, func(c *storagev1.StorageClass) { c.Annotations = map[string]string{annotation: "true"} })
			claim := f.claim(suffix, class, func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil })
			if pv := f.bound(claim); pv.Spec.StorageClassName != class.Name {
				t.Errorf("the volume is of class %q, want %q", pv.Spec.StorageClassName, class.Name)
			}
			f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(t.Context(), class.Name, metav1.DeleteOptions{}))
		})
	}
}

// A claim that names its class by the old annotation.
func TestBetaClassAnnotation(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	claim := f.claim("data", class, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.StorageClassName = nil
		c.Annotations = map[string]string{corev1.BetaStorageClassAnnotation: class.Name}
	})
	if pv := f.bound(claim); pv.Spec.StorageClassName != class.Name {
		t.Errorf("the volume is of class %q, want %q", pv.Spec.StorageClassName, class.Name)
	}
}

// The rig has no scheduler that would write the node into the claim.
func TestWaitForFirstConsumer(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	wait := storagev1.VolumeBindingWaitForFirstConsumer
	class := f.class("wait", func(c *storagev1.StorageClass) { c.VolumeBindingMode = &wait })
	node, err := rig.Kube.Client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: f.name + "-node"},
	}, metav1.CreateOptions{})
	f.must(err)

	claim := f.claim("data", class, nil)
	f.event(claim, "waiting for first consumer to be created before binding")
	f.pending(claim)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
	f.selectNode(claim, node.Name)
	f.bound(claim)

	// The library drops a claim whose node is gone, unless it is told not to.
	f.must(rig.Kube.Client.CoreV1().Nodes().Delete(t.Context(), node.Name, metav1.DeleteOptions{}))
	orphan := f.claim("orphan", class, nil)
	f.selectNode(orphan, node.Name)
	f.bound(orphan)
}

// selectNode does to a claim what the scheduler does.
func (f *fixture) selectNode(claim *corev1.PersistentVolumeClaim, node string) {
	f.Helper()
	patch := `{"metadata":{"annotations":{"volume.kubernetes.io/selected-node":"` + node + `"}}}`
	_, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(f.Context(), claim.Name,
		types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	f.must(err)
}

// Every wrong class of the parser's own tests, with the message that appears on the
// claim.
func TestBadClasses(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	files, err := filepath.Glob(checkout("provisioner", "storageclass", "testdata", "bad", "*.yaml"))
	if err != nil || len(files) < 15 {
		t.Fatalf("found %d wrong classes, %v", len(files), err)
	}
	claims := map[*corev1.PersistentVolumeClaim]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		f.must(err)
		var bad storagev1.StorageClass
		f.must(yaml.UnmarshalStrict(data, &bad))
		class := f.class(bad.Name, func(c *storagev1.StorageClass) { c.Parameters = bad.Parameters })
		claims[f.claim(bad.Name, class, nil)] = "failed to provision volume with StorageClass \"" + class.Name + "\": " + bad.Annotations["want-error"]
	}
	for claim, want := range claims {
		f.event(claim, want)
		f.pending(claim)
	}
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
}

// When a class is repaired, that is, deleted and made again, its claims are bound.
func TestMendedClass(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", func(c *storagev1.StorageClass) { c.Parameters["pool"] = "nowhere" })
	claim := f.claim("data", class, nil)
	f.event(claim, `open pool "nowhere": pool does not exist: create the pool, or correct its name`)
	f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(t.Context(), class.Name, metav1.DeleteOptions{}))
	f.class("a", nil)
	f.bound(claim)
}
