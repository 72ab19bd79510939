// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

const (
	libraryFinalizer = "external-provisioner.volume.kubernetes.io/finalizer"
	notRemoved       = "ImageNotRemoved"
)

// literally runs the commands that an event ends with, in a shell, with some of their
// words replaced.
func (f *fixture) literally(event corev1.Event, words ...string) {
	f.Helper()
	i := max(strings.LastIndex(event.Message, ": kubectl "), strings.LastIndex(event.Message, ": rbd "), strings.LastIndex(event.Message, ": ceph "))
	if i < 0 {
		f.Fatalf("the event ends with no command: %s", event.Message)
	}
	commands := strings.NewReplacer(words...).Replace(event.Message[i+2:])
	shell := exec.CommandContext(f.Context(), "sh", "-ec", `kubectl() { "$KUBECTL" "$@"; }`+"\n"+commands)
	shell.Env = append(os.Environ(), "KUBECTL="+rig.Kube.KubectlPath, "KUBECONFIG="+rig.Kube.Kubeconfig, "CEPH_CONF="+rig.Ceph.Conf)
	if output, err := shell.CombinedOutput(); err != nil {
		f.Fatalf("%s: %v: %s", commands, err, output)
	}
}

// unbound returns a volume in phase Available that was bound: somebody removed its
// claimRef before its image was removed. The library's finalizer is on it.
func (f *fixture) unbound(change func(pv *corev1.PersistentVolume)) *corev1.PersistentVolume {
	f.Helper()
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	f.rbd("snap", "create", "--no-progress", pv.Spec.RBD.RBDImage+"@keep")
	f.delete(claim)
	f.told(pv, failedDelete, "image has snapshots")
	change(pv)
	f.patch(pv, types.JSONPatchType, `[{"op":"remove","path":"/spec/claimRef"}]`)
	f.phase(pv, corev1.VolumeAvailable)
	f.rbd("snap", "rm", "--no-progress", pv.Spec.RBD.RBDImage+"@keep")
	return pv
}

// handmadeVolume makes an image and a volume for it, without a claim.
func (f *fixture) handmadeVolume(change func(pv *corev1.PersistentVolume)) *corev1.PersistentVolume {
	f.Helper()
	f.rbd("create", "--size=1G", "--image-feature=layering", "by-hand")
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: f.name + "-by-hand", Annotations: map[string]string{
			"pv.kubernetes.io/provisioned-by": "ceph.com/rbd", "rbdProvisionerIdentity": "ceph.com/rbd",
		}},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName:              f.name + "-static",
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
				CephMonitors: []string{rig.Ceph.MonitorV1}, RBDPool: f.name, RBDImage: "by-hand",
			}},
		},
	}
	change(pv)
	return f.create(pv)
}

// A person deletes a volume that Kubernetes has not released. It goes in every phase, its
// image stays, and an event says so and how to remove the image.
func TestVolumesDeletedByHand(t *testing.T) {
	t.Parallel()
	const command = `to remove it, once "rbd image-meta list NAME/IMAGE" shows that it is no other cluster's, run: rbd rm NAME/IMAGE`
	held := func(pv *corev1.PersistentVolume) { pv.Finalizers = []string{libraryFinalizer} }
	for name, test := range map[string]struct {
		volume func(f *fixture) *corev1.PersistentVolume
		phase  corev1.PersistentVolumePhase
		policy string // Delete if it is empty
		want   string // the end of the event
	}{
		"its claimRef was removed": {
			volume: func(f *fixture) *corev1.PersistentVolume { return f.unbound(func(*corev1.PersistentVolume) {}) },
			phase:  corev1.VolumeAvailable, want: command,
		},
		// Nothing holds it.
		"it never had a claim": {
			volume: func(f *fixture) *corev1.PersistentVolume { return f.handmadeVolume(func(*corev1.PersistentVolume) {}) },
			phase:  corev1.VolumeAvailable, want: command,
		},
		// From a backup that keeps finalizers.
		"it is reserved for a claim": {
			volume: func(f *fixture) *corev1.PersistentVolume {
				return f.handmadeVolume(func(pv *corev1.PersistentVolume) {
					held(pv)
					pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: f.name, Name: "later"}
				})
			},
			phase: corev1.VolumeAvailable, want: command,
		},
		"its claim can't have it": {
			volume: func(f *fixture) *corev1.PersistentVolume {
				class := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: f.name + "-static"}}
				claim := f.claim("data", class, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock) })
				return f.handmadeVolume(func(pv *corev1.PersistentVolume) {
					held(pv)
					pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: f.name, Name: claim.Name, UID: claim.UID}
				})
			},
			phase: corev1.VolumePending, want: "was not removed: it is that of claim NAME/data, which still exists",
		},
		// The controller manager recycles nothing of rbd.
		"it was to be recycled": {
			volume: func(f *fixture) *corev1.PersistentVolume {
				pv := f.unbound(func(*corev1.PersistentVolume) {})
				f.patch(pv, types.MergePatchType, fmt.Sprintf(`{"spec":{"persistentVolumeReclaimPolicy":"Recycle",`+
					`"claimRef":{"namespace":%q,"name":"data","uid":"gone"}}}`, f.name))
				f.phase(pv, corev1.VolumeFailed)
				f.patch(pv, types.MergePatchType, `{"metadata":{"finalizers":["`+libraryFinalizer+`"]},"spec":{"persistentVolumeReclaimPolicy":"Delete"}}`)
				return pv
			},
			phase: corev1.VolumeFailed, want: command,
		},
		// The library takes its finalizer off.
		"its policy says so": {
			volume: func(f *fixture) *corev1.PersistentVolume {
				return f.handmadeVolume(func(pv *corev1.PersistentVolume) {
					held(pv)
					pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
				})
			},
			phase: corev1.VolumeAvailable, policy: "Retain", want: command,
		},
		"a second volume names its image": {
			volume: func(f *fixture) *corev1.PersistentVolume {
				return f.unbound(func(pv *corev1.PersistentVolume) { f.second(pv, func(*fixture, *corev1.PersistentVolume) {}) })
			},
			phase: corev1.VolumeAvailable, want: `was not removed: volume "VOLUME-second" names it, too`,
		},
		"it is a copy from another cluster": {
			volume: func(f *fixture) *corev1.PersistentVolume {
				return f.unbound(func(pv *corev1.PersistentVolume) {
					f.annotate(pv, map[string]string{kubernetesCluster: anotherCluster})
				})
			},
			phase: corev1.VolumeAvailable, want: command,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			pv := test.volume(f)
			f.phase(pv, test.phase)
			f.remove(pv)
			event := f.told(pv, notRemoved, fmt.Sprintf("the volume was deleted while it was %s, with the policy %s", test.phase, cmp.Or(test.policy, "Delete")))
			want := strings.NewReplacer("IMAGE", pv.Spec.RBD.RBDImage, "NAME", f.name, "VOLUME", pv.Name).Replace(test.want)
			if !strings.HasSuffix(event.Message, want) {
				t.Errorf("the event says %q, want %q at its end", event.Message, want)
			}
			f.rbd("info", pv.Spec.RBD.RBDImage)
			if test.want == command {
				f.literally(event)
			} else {
				f.rbd("rm", "--no-progress", pv.Spec.RBD.RBDImage)
			}
		})
	}
}

// A volume that is deleted while it is bound goes with its claim, and takes its image
// along. One of another identity, which has the same finalizer, is not ours to let go.
func TestVolumesDeletedByHandOfOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	volumes := rig.Kube.Client.CoreV1().PersistentVolumes()
	others := f.handmadeVolume(func(pv *corev1.PersistentVolume) {
		pv.Finalizers = []string{libraryFinalizer}
		pv.Annotations["rbdProvisionerIdentity"] = "somebody-else"
	})
	f.phase(others, corev1.VolumeAvailable)
	f.must(volumes.Delete(t.Context(), others.Name, metav1.DeleteOptions{}))

	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	f.must(volumes.Delete(t.Context(), pv.Name, metav1.DeleteOptions{}))
	f.delete(claim)
	f.gone(pv)
	if events := f.events(t.Context(), pv.UID); strings.Contains(events, notRemoved) {
		t.Errorf("volume %s: %s", pv.Name, events)
	}

	live, err := volumes.Get(t.Context(), others.Name, metav1.GetOptions{})
	f.must(err)
	if !slices.Contains(live.Finalizers, libraryFinalizer) {
		t.Errorf("volume %s has the finalizers %v", live.Name, live.Finalizers)
	}
	f.patch(others, types.MergePatchType, `{"metadata":{"finalizers":null}}`)
	f.volumeGone(others)
	f.rbd("rm", "--no-progress", "by-hand")
}
