// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ceph.com/rbd-provisioner/provisioner/journal"
)

const (
	// kubernetesCluster is both the mark of an image, and the annotation of its volume
	// that says that the mark is there.
	kubernetesCluster = "rbd.ceph.com/kubernetes-cluster"
	formerCluster     = "rbd.ceph.com/former-cluster"
	// anotherCluster is the UID of kube-system somewhere else.
	anotherCluster = "00000000-0000-4000-8000-000000000001"
)

// clusterUID is the UID of this cluster's kube-system.
func (f *fixture) clusterUID() string {
	f.Helper()
	system, err := rig.Kube.Client.CoreV1().Namespaces().Get(f.Context(), metav1.NamespaceSystem, metav1.GetOptions{})
	f.must(err)
	return string(system.UID)
}

// metadata returns the metadata of an image.
func (f *fixture) metadata(image string) map[string]string {
	f.Helper()
	var all map[string]string
	f.must(rig.Ceph.JSON(f.Context(), &all, "rbd", "image-meta", "list", f.name+"/"+image))
	return all
}

// mark writes into an image that it belongs to a cluster.
func (f *fixture) mark(image, cluster string) {
	f.Helper()
	f.rbd("image-meta", "set", image, kubernetesCluster, cluster)
}

// unannotate removes annotations of a volume.
func (f *fixture) unannotate(pv *corev1.PersistentVolume, keys ...string) {
	f.Helper()
	args := []string{"annotate", "pv", pv.Name}
	for _, key := range keys {
		args = append(args, key+"-")
	}
	_, err := rig.Kube.Kubectl(f.Context(), "", args...)
	f.must(err)
}

// run runs the kubectl or rbd command that an event says to run.
func (f *fixture) run(event corev1.Event, program string) {
	f.Helper()
	_, command, found := strings.Cut(event.Message, ": "+program+" ")
	if !found {
		f.Fatalf("the event has no command of %s: %s", program, event.Message)
	}
	command, _, _ = strings.Cut(command, ";")
	var err error
	if args := strings.Fields(command); program == "kubectl" {
		_, err = rig.Kube.Kubectl(f.Context(), "", args...)
	} else {
		_, err = rig.Ceph.Run(f.Context(), program, args...)
	}
	f.must(err)
}

// owned waits until a volume says that its image is marked as this cluster's and names no
// former cluster, and checks that the image is marked.
func (f *fixture) owned(pv *corev1.PersistentVolume) {
	f.Helper()
	uid := f.clusterUID()
	f.eventually(func(ctx context.Context) error {
		live, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if former, is := live.Annotations[formerCluster]; is || live.Annotations[kubernetesCluster] != uid {
			return fmt.Errorf("volume %s is of cluster %q, and was of %q: want %q and nothing; %s",
				pv.Name, live.Annotations[kubernetesCluster], former, uid, f.events(ctx, pv.UID))
		}
		return nil
	})
	metadata := f.metadata(pv.Spec.RBD.RBDImage)
	if got := metadata[kubernetesCluster]; got != uid {
		f.Errorf("the image is marked as that of cluster %q, want %q", got, uid)
	}
	// The metadata of the retired provisioner's images do not name a volume.
	if got := metadata["kubernetes.io/created-for/pv/name"]; got != "" && got != pv.Name {
		f.Errorf("the image is marked as that of volume %q, want %q", got, pv.Name)
	}
}

// Images without an owner get their mark while they are in use.
func TestUnmarkedImages(t *testing.T) {
	t.Parallel()
	for name, volume := range map[string]func(*fixture, *storagev1.StorageClass) *corev1.PersistentVolumeClaim{
		"of the retired provisioner": func(f *fixture, class *storagev1.StorageClass) *corev1.PersistentVolumeClaim {
			return f.retiredVolume(class, "data")
		},
		"of an earlier version": func(f *fixture, class *storagev1.StorageClass) *corev1.PersistentVolumeClaim {
			claim := f.claim("data", class, nil)
			pv := f.bound(claim)
			f.rbd("image-meta", "remove", pv.Spec.RBD.RBDImage, kubernetesCluster)
			f.unannotate(pv, kubernetesCluster)
			return claim
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			claim := volume(f, f.class("a", nil))
			pv := f.bound(claim)
			f.owned(pv)
			f.delete(claim)
			f.gone(pv)
			f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
		})
	}
}

// patch changes the spec of a volume with JSON.
func (f *fixture) patch(pv *corev1.PersistentVolume, kind types.PatchType, patch string) {
	f.Helper()
	_, err := rig.Kube.Client.CoreV1().PersistentVolumes().Patch(f.Context(), pv.Name, kind, []byte(patch), metav1.PatchOptions{})
	f.must(err)
}

// drop removes a released volume as an event and docs/moving.md say, and checks that its
// image is left.
func (f *fixture) drop(pv *corev1.PersistentVolume) {
	f.Helper()
	f.patch(pv, types.MergePatchType, `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
	f.remove(pv)
	f.rbd("info", pv.Spec.RBD.RBDImage)
}

// A volume was restored from another cluster's backup. Its image belongs to that cluster
// until a person who uses it runs the command that the event names. No such command
// removes the image.
func TestImageOfAnotherCluster(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]func(*fixture, *corev1.PersistentVolumeClaim, *corev1.PersistentVolume){
		"in use": func(f *fixture, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			f.annotate(pv, map[string]string{kubernetesCluster: anotherCluster})
			event := f.told(pv, "ImageNotOwned", anotherCluster)
			if got := f.metadata(pv.Spec.RBD.RBDImage)[kubernetesCluster]; got != anotherCluster {
				f.Errorf("the image was marked as that of cluster %q", got)
			}
			f.run(event, "kubectl")
			f.told(pv, "ImageTakenOver", anotherCluster)
			f.owned(pv)
			f.delete(claim)
		},
		"dropped": func(f *fixture, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			f.delete(claim)
			f.told(pv, failedDelete, fmt.Sprintf("image %q in pool %q belongs to another Kubernetes cluster, "+
				"whose namespace kube-system has the UID %q: it is left alone; to drop this volume and keep the image, "+
				"set the volume's persistentVolumeReclaimPolicy to Retain", pv.Spec.RBD.RBDImage, f.name, anotherCluster))
			f.kept(pv)
			f.drop(pv)
			f.rbd("rm", "--no-progress", pv.Spec.RBD.RBDImage)
		},
		"bound again": func(f *fixture, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			f.delete(claim)
			refused := f.told(pv, failedDelete, "to have the image, bind the volume to a claim first")
			// Its change is an attempt, too.
			f.annotate(pv, map[string]string{formerCluster: anotherCluster})
			f.toldSo(pv, failedDelete, refused.Message, func(e corev1.Event) bool { return e.Count > refused.Count })
			f.kept(pv)
			f.patch(pv, types.JSONPatchType, `[{"op":"remove","path":"/spec/claimRef"}]`)
			claim = f.claimOf("again", pv)
			f.told(pv, "ImageTakenOver", anotherCluster)
			f.owned(pv)
			f.delete(claim)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			claim := f.claim("data", f.class("a", nil), nil)
			pv := f.bound(claim)
			f.mark(pv.Spec.RBD.RBDImage, anotherCluster)
			test(f, claim, pv)
			f.gone(pv)
			f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
		})
	}
}

// A copy of a volume under another name owns the image once the volume is gone and the
// copy says that it moved here, even from the same cluster.
func TestVolumeUnderAnotherName(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	f.patch(pv, types.MergePatchType, `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
	f.delete(claim)
	f.phase(pv, corev1.VolumeReleased)
	f.remove(pv)

	again := copyOf(pv, pv.Name+"-moved")
	again.Spec.ClaimRef.Name = "moved"
	again = f.create(again)
	claim = f.claimOf("moved", again)
	f.annotate(again, map[string]string{formerCluster: f.clusterUID()})
	f.told(again, "ImageTakenOver", again.Spec.RBD.RBDImage)
	f.owned(again)
	f.delete(claim)
	f.gone(again)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
}

// withoutIdentity tests a provisioner that may not know which cluster it is in: it keeps
// no journal and marks nothing, and leaves marked images alone.
func withoutIdentity(r *restricted) {
	r.refused("WARNING: this Kubernetes cluster can't be told from others")
	r.refused("working without a journal")
	plain, marked := r.claim(r.ns+"-plain", r.class, nil), r.claim(r.ns+"-marked", r.class, nil)
	pv := r.bound(plain)
	uid := r.clusterUID()
	if metadata := r.metadata(pv.Spec.RBD.RBDImage); pv.Annotations[kubernetesCluster] != "" || metadata[kubernetesCluster] != "" {
		r.Errorf("the volume has the annotations %v, its image the metadata %v", pv.Annotations, metadata)
	}
	r.served(plain)

	pv = r.bound(marked)
	r.mark(pv.Spec.RBD.RBDImage, uid) // as it did when it knew
	r.delete(marked)
	r.told(pv, failedDelete, fmt.Sprintf("belongs to the Kubernetes cluster whose namespace kube-system has the UID %q, and this provisioner "+
		"may not read that UID of its own: it is left alone; apply the manifests of rbac/ and restart the provisioner", uid))
	r.kept(pv)
	objects, err := rig.Ceph.Run(r.Context(), "rados", "--pool", r.name, "ls")
	r.must(err)
	if slices.Contains(strings.Fields(objects), journal.New(uid, r.provisionerName, r.provisionerName).Intents.Object) {
		r.Error("it keeps a journal")
	}

	all := r.named(installed(r.T))
	r.grant(r.ns, all, all)
	r.must(r.process.Restart(r.Context()))
	r.gone(pv)
}
