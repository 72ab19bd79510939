// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	failedDelete  = "VolumeFailedDelete"
	deletionBegun = "rbd.ceph.com/deletion-begun"
)

// copyOf returns a volume as a backup restores it: with all that people and controllers
// wrote into it, and without what the API server and the binding added.
func copyOf(pv *corev1.PersistentVolume, name string) *corev1.PersistentVolume {
	again := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: maps.Clone(pv.Annotations), Labels: pv.Labels},
		Spec:       *pv.Spec.DeepCopy(),
	}
	delete(again.Annotations, "pv.kubernetes.io/bound-by-controller")
	if ref := again.Spec.ClaimRef; ref != nil {
		again.Spec.ClaimRef = &corev1.ObjectReference{Namespace: ref.Namespace, Name: ref.Name}
	}
	return again
}

// create makes a volume, which is deleted when the test ends.
func (f *fixture) create(pv *corev1.PersistentVolume) *corev1.PersistentVolume {
	f.Helper()
	pv, err := rig.Kube.Client.CoreV1().PersistentVolumes().Create(f.Context(), pv, metav1.CreateOptions{})
	f.must(err)
	f.Cleanup(func() {
		err := rig.Kube.Client.CoreV1().PersistentVolumes().Delete(context.WithoutCancel(f.Context()), pv.Name, metav1.DeleteOptions{})
		if !apierrors.IsNotFound(err) {
			f.must(err)
		}
	})
	return pv
}

// second makes a second volume that names the image of a first one. It has no claim yet,
// and leaves the image alone when it is deleted.
func (f *fixture) second(first *corev1.PersistentVolume, change func(*fixture, *corev1.PersistentVolume)) *corev1.PersistentVolume {
	f.Helper()
	pv := copyOf(first, first.Name+"-second")
	pv.Spec.ClaimRef = nil
	pv.Spec.StorageClassName = f.name + "-static"
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	change(f, pv)
	return f.create(pv)
}

// elsewhere returns the fixture with claims in another namespace.
func (f *fixture) elsewhere() *fixture {
	f.Helper()
	in := f.in(f.T)
	in.name = f.name + "-elsewhere"
	namespaces := rig.Kube.Client.CoreV1().Namespaces()
	_, err := namespaces.Create(f.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: in.name}}, metav1.CreateOptions{})
	f.must(err)
	f.Cleanup(func() { f.must(namespaces.Delete(context.WithoutCancel(f.Context()), in.name, metav1.DeleteOptions{})) })
	return in
}

// claimOf makes a claim for a certain volume, and waits until the claim is bound to it.
func (f *fixture) claimOf(name string, pv *corev1.PersistentVolume) *corev1.PersistentVolumeClaim {
	f.Helper()
	class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: pv.Spec.StorageClassName}}
	claim := f.claim(name, class, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = pv.Name })
	f.bound(claim)
	return claim
}

// remove deletes a volume, and waits until it is gone.
func (f *fixture) remove(pv *corev1.PersistentVolume) {
	f.Helper()
	f.must(rig.Kube.Client.CoreV1().PersistentVolumes().Delete(f.Context(), pv.Name, metav1.DeleteOptions{}))
	f.volumeGone(pv)
}

// told waits for an event about a volume or a claim with that reason, whose message has the given
// text, and returns it.
func (f *fixture) told(object metav1.Object, reason, text string) corev1.Event {
	f.Helper()
	return f.toldSo(object, reason, text, func(corev1.Event) bool { return true })
}

// toldSo waits for such an event that also meets a condition.
func (f *fixture) toldSo(object metav1.Object, reason, text string, so func(corev1.Event) bool) corev1.Event {
	f.Helper()
	var found corev1.Event
	f.eventually(func(ctx context.Context) error {
		list, err := rig.Kube.Client.CoreV1().Events("").List(ctx, metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("involvedObject.uid", string(object.GetUID())).String(),
		})
		if err != nil {
			return err
		}
		for _, found = range list.Items {
			if found.Reason == reason && strings.Contains(found.Message, text) && so(found) {
				return nil
			}
		}
		return fmt.Errorf("no %s of %s says %q as wanted: %s", reason, object.GetName(), text, f.events(ctx, object.GetUID()))
	})
	return found
}

// kept checks that a volume that waits for its deletion is unchanged, and its image, too.
func (f *fixture) kept(pv *corev1.PersistentVolume) {
	f.Helper()
	live, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(f.Context(), pv.Name, metav1.GetOptions{})
	f.must(err)
	if live.Status.Phase != corev1.VolumeReleased || live.DeletionTimestamp != nil {
		f.Errorf("volume %s is %s, deleted at %v", pv.Name, live.Status.Phase, live.DeletionTimestamp)
	}
	f.rbd("info", pv.Spec.RBD.RBDImage)
}

const cephCSI = "rbd.csi.ceph.com"

// byCSI makes a volume name its image by a CSI source, without annotations. In handle and
// attributes, IMAGE stands for the image's name, REST for what follows
// kubernetes-dynamic-pvc- in it, and POOL and HEX for the pool's name in both forms.
func byCSI(driver, handle string, attributes map[string]string) func(*fixture, *corev1.PersistentVolume) {
	return func(_ *fixture, pv *corev1.PersistentVolume) {
		image, pool := pv.Spec.RBD.RBDImage, pv.Spec.RBD.RBDPool
		words := strings.NewReplacer("IMAGE", image, "REST", strings.TrimPrefix(image, "kubernetes-dynamic-pvc-"),
			"POOL", pool, "HEX", hex.EncodeToString([]byte(pool)))
		source := &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: words.Replace(handle), VolumeAttributes: map[string]string{}}
		for key, value := range attributes {
			source.VolumeAttributes[key] = words.Replace(value)
		}
		pv.Annotations = nil
		pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: source}
	}
}

// An image that a second volume names stays for as long as that volume exists, and the
// first one waits for that. Images with similar names are no reason to wait.
func TestSecondVolume(t *testing.T) {
	t.Parallel()
	static := map[string]string{"clusterID": "ceph", "pool": "POOL", "staticVolume": "true", "imageFeatures": "layering"}
	for name, test := range map[string]struct {
		change func(*fixture, *corev1.PersistentVolume)
		// claimed makes a claim of another namespace use the second volume.
		claimed bool
		holds   bool
	}{
		"a copy":                      {func(*fixture, *corev1.PersistentVolume) {}, true, true},
		"a copy without annotations":  {func(_ *fixture, pv *corev1.PersistentVolume) { pv.Annotations = nil }, true, true},
		"a static volume of ceph-csi": {byCSI(cephCSI, "IMAGE", static), true, true},
		"a volume of another driver": {
			byCSI("rbd.example.com", "volume-1", map[string]string{"pool": "POOL", "imageName": "IMAGE"}), false, true,
		},
		"a migrated volume": {
			byCSI(cephCSI, "mig_mons-b7f67366bb43f32e07d8a261a7840da9_image-REST_HEX",
				map[string]string{"clusterID": "b7f67366bb43f32e07d8a261a7840da9", "migration": "true"}), false, true,
		},
		"an image in another pool": {
			byCSI(cephCSI, "IMAGE", map[string]string{"clusterID": "ceph", "pool": "another", "staticVolume": "true"}), false, false,
		},
		"an image in a RADOS namespace": {
			byCSI(cephCSI, "IMAGE", map[string]string{"clusterID": "ceph", "pool": "POOL", "radosNamespace": "tenant"}), false, false,
		},
		"an image in another Ceph cluster": {func(_ *fixture, pv *corev1.PersistentVolume) {
			pv.Annotations["rbd.ceph.com/cluster-fsid"] = "00000000-0000-4000-8000-000000000000"
		}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			claim := f.claim("data", f.class("a", nil), nil)
			first := f.bound(claim)
			second := f.second(first, test.change)
			if !test.holds {
				f.delete(claim)
				f.gone(first)
				f.phase(second, corev1.VolumeAvailable)
				return
			}
			want := fmt.Sprintf("image %q in pool %q is also the image of volume %q", first.Spec.RBD.RBDImage, f.name, second.Name)
			var user *corev1.PersistentVolumeClaim
			elsewhere := f
			if test.claimed {
				elsewhere = f.elsewhere()
				user = elsewhere.claimOf("copy", second)
				want += fmt.Sprintf(" (claim %s/copy)", elsewhere.name)
			}
			f.delete(claim)
			f.told(first, failedDelete, want+": it will be removed once that volume is gone")
			f.kept(first)
			if user != nil {
				elsewhere.bound(user)
				elsewhere.delete(user)
				f.phase(second, corev1.VolumeReleased)
			}
			f.remove(second)
			f.gone(first)
			f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
		})
	}
}

// Two volumes of one image that will both be deleted with it do not wait for each other.
func TestSecondVolumeGoesToo(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	first := f.bound(claim)
	second := f.second(first, func(_ *fixture, pv *corev1.PersistentVolume) {
		pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	})
	user := f.claimOf("copy", second)
	f.delete(user)
	f.told(second, failedDelete, fmt.Sprintf("is also the image of volume %q (claim %s/data)", first.Name, f.name))
	f.kept(second)
	f.delete(claim)
	f.gone(first)
	f.gone(second)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
}

// begun watches a volume from its present version. The function that it returns waits
// until the volume is gone, and returns how many of the later versions note that its
// deletion has begun.
func (f *fixture) begun(pv *corev1.PersistentVolume) func() int {
	f.Helper()
	w, err := rig.Kube.Client.CoreV1().PersistentVolumes().Watch(f.Context(), metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", pv.Name).String(), ResourceVersion: pv.ResourceVersion,
	})
	f.must(err)
	f.Cleanup(w.Stop)
	return func() int {
		f.Helper()
		f.volumeGone(pv)
		notes := map[string]bool{}
		for {
			select {
			case event := <-w.ResultChan():
				live, ok := event.Object.(*corev1.PersistentVolume)
				if !ok {
					f.Fatalf("watch volume %s: got %v", pv.Name, event)
				}
				notes[live.Annotations[deletionBegun]] = true
				if event.Type == watch.Deleted {
					delete(notes, "")
					return len(notes)
				}
			case <-time.After(patience):
				f.Fatalf("the watch of volume %s does not show that it is gone", pv.Name)
			}
		}
	}
}

// If a volume was released a moment ago, its image is removed without a request to the
// API server.
func TestDeletionIsNotNoted(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	begun := f.begun(pv)
	f.delete(claim)
	if notes := begun(); notes != 0 {
		t.Errorf("its deletion was noted %d times", notes)
	}
}

// If a volume was released longer ago, its image is removed only when all newer volumes
// are known: the deletion is noted first, and the cache then shows that.
func TestSecondVolumeMadeLate(t *testing.T) {
	t.Parallel()
	for name, with := range map[string]bool{"alone": false, "with a second volume": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			claim := f.claim("data", f.class("a", nil), nil)
			first := f.bound(claim)
			begun := f.begun(first)
			_, unwatch := f.watch(first.Spec.RBD.RBDImage)
			f.delete(claim)
			f.told(first, failedDelete, "image is in use") // half a minute later
			if with {
				second := f.second(first, func(*fixture, *corev1.PersistentVolume) {})
				unwatch()
				f.told(first, failedDelete, fmt.Sprintf("is also the image of volume %q", second.Name))
				f.kept(first)
				f.remove(second)
				// Or the next attempt came in half a minute.
				f.annotate(first, map[string]string{"example.com/second": "gone"})
				f.gone(first)
				return
			}
			unwatch()
			if notes := begun(); notes != 1 {
				t.Errorf("its deletion was noted %d times, want once", notes)
			}
			f.gone(first)
			f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
		})
	}
}
