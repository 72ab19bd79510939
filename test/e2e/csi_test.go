// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// source makes a class name the source of its volumes.
func source(name string) func(*storagev1.StorageClass) {
	return func(c *storagev1.StorageClass) {
		growing(c)
		c.Parameters["volumeSource"] = name
	}
}

func accessModes(modes ...corev1.PersistentVolumeAccessMode) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = modes }
}

// isCSI checks which source a volume has.
func (f *fixture) isCSI(pv *corev1.PersistentVolume, want bool) {
	f.Helper()
	if is := pv.Spec.CSI != nil && pv.Spec.CSI.Driver == "rbd.ceph.com"; is != want || (pv.Spec.RBD != nil) == want {
		f.Errorf("volume %s is the node plugin's: %v, want %v", pv.Name, is, want)
	}
}

// The object of the node plugin decides on the volumes of the whole cluster, so this test
// runs alone. No node runs the plugin: what it does with the volumes is for test/node.
func TestNodePlugin(t *testing.T) {
	f := newFixture(t)
	auto, csi := f.class("auto", growing), f.class("csi", source("csi"))

	// Without it, volumes are in-tree, and their claims are told if that is of no use.
	early := f.claim("early", auto, nil)
	f.isCSI(f.bound(early), false)
	if hasInTree(t) {
		if events := f.events(t.Context(), early.UID); strings.Contains(events, "NotMountable") {
			t.Errorf("the claim was warned: %s", events)
		}
	} else {
		f.event(early, "Warning NotMountable (ceph.com/rbd, 1 times): Pods can't use this volume, which is in-tree")
		f.event(early, `run "kubectl apply -f deploy/node/"`)
	}
	waiting := f.claim("waiting", csi, nil)
	f.event(waiting, `there is no CSIDriver "rbd.ceph.com": run: kubectl apply -f deploy/node/`)
	f.pending(waiting)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))

	// It is installed, and the claim gets its volume.
	_, err := rig.Kube.Kubectl(t.Context(), "", "apply", "-f", checkout("deploy", "node", "csidriver.yaml"))
	f.must(err)
	remove := func(ctx context.Context) error {
		return rig.Kube.Client.StorageV1().CSIDrivers().Delete(ctx, "rbd.ceph.com", metav1.DeleteOptions{})
	}
	t.Cleanup(func() {
		if err := remove(context.WithoutCancel(t.Context())); err != nil && !apierrors.IsNotFound(err) {
			t.Error(err)
		}
	})
	pv := f.bound(waiting)
	image := "kubernetes-dynamic-pvc-" + string(waiting.UID)
	want := &corev1.CSIPersistentVolumeSource{
		Driver: "rbd.ceph.com", VolumeHandle: rig.Ceph.FSID + "/" + f.name + "/" + image,
		VolumeAttributes:   map[string]string{"monitors": rig.Ceph.MonitorV1, "pool": f.name, "image": image, "user": f.name + "-user"},
		NodeStageSecretRef: &corev1.SecretReference{Namespace: f.name, Name: "user"},
	}
	if diff := cmp.Diff(want, pv.Spec.CSI); diff != "" {
		t.Errorf("source (-want +got):\n%s", diff)
	}
	t.Run("installed", func(t *testing.T) {
		for name, test := range withPlugin {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(f.in(t), auto, csi)
			})
		}
	})
	f.delete(waiting)
	f.gone(pv)

	// The tests that follow are without it.
	f.must(remove(t.Context()))
	for i := range 100 {
		if f.bound(f.claim(fmt.Sprintf("late-%d", i), auto, nil)).Spec.CSI == nil {
			return
		}
	}
	t.Error("volumes are still those of the node plugin, which is removed")
}

// withPlugin has what needs the node plugin's object. auto is a class that leaves the
// choice to the provisioner; with csi, volumes are the node plugin's.
var withPlugin = map[string]func(f *fixture, auto, csi *storagev1.StorageClass){
	"the choice": func(f *fixture, auto, _ *storagev1.StorageClass) {
		claim := f.claim("chosen", auto, nil)
		f.isCSI(f.bound(claim), !hasInTree(f.T))
		if events := f.events(f.Context(), claim.UID); strings.Contains(events, "NotMountable") {
			f.Errorf("the claim was warned: %s", events)
		}
	},
	"the start": func(f *fixture, _, _ *storagev1.StorageClass) {
		p := start(f.T, []string{"PROVISIONER_NAME=example.com/" + f.name + "-start"}, "-leader-election=false")
		want := "Volumes are those of the node plugin, which is installed"
		if hasInTree(f.T) {
			want = "Volumes are in-tree, unless their StorageClass gives"
		}
		if !strings.Contains(log(f.T, p), want) {
			f.Errorf("the log does not have %q", want)
		}
	},
	"in-tree all the same": func(f *fixture, _, _ *storagev1.StorageClass) {
		claim := f.claim("intree", f.class("intree", source("rbd")), nil)
		f.isCSI(f.bound(claim), false)
		if !hasInTree(f.T) {
			f.event(claim, `Pods can't use this volume, which is in-tree: Kubernetes can't mount those from 1.31 on: use a StorageClass without "volumeSource"`)
		}
	},
	"access modes": func(f *fixture, _, csi *storagev1.StorageClass) {
		for name, change := range map[string]func(*corev1.PersistentVolumeClaim){
			"one-pod":  accessModes(corev1.ReadWriteOncePod),
			"raw-read": func(c *corev1.PersistentVolumeClaim) { block(c); accessModes(corev1.ReadOnlyMany)(c) },
			"all-raw":  func(c *corev1.PersistentVolumeClaim) { block(c); accessModes(corev1.ReadWriteMany)(c) },
			"one-each": func(c *corev1.PersistentVolumeClaim) { block(c); accessModes(corev1.ReadWriteOncePod)(c) },
		} {
			claim := f.claim(name, csi, change)
			pv := f.bound(claim)
			f.isCSI(pv, true)
			if diff := cmp.Diff(claim.Spec.AccessModes, pv.Spec.AccessModes); diff != "" {
				f.Errorf("access modes of %s (-claim +volume):\n%s", name, diff)
			}
		}
		// kubelet tells the plugin the first mode only.
		last := f.claim("all-last", csi, func(c *corev1.PersistentVolumeClaim) {
			block(c)
			accessModes(corev1.ReadWriteOnce, corev1.ReadWriteMany)(c)
		})
		if got := f.bound(last).Spec.AccessModes; len(got) != 2 || got[0] != corev1.ReadWriteMany {
			f.Errorf("access modes: got %v, want ReadWriteMany in front", got)
		}
		refused := f.claim("write-and-read", csi, accessModes(corev1.ReadWriteOnce, corev1.ReadOnlyMany))
		f.event(refused, "access modes ReadOnlyMany and ReadWriteOnce on one claim are not supported by the node plugin")
		refused = f.claim("read-nothing", csi, accessModes(corev1.ReadOnlyMany))
		f.event(refused, "access mode ReadOnlyMany alone would give a volume without a file system")
		refused = f.claim("all-mounted", csi, accessModes(corev1.ReadWriteMany))
		f.event(refused, "ReadWriteMany for spec.volumeMode Block only")
		refused = f.claim("one-pod-in-tree", f.class("modes", source("rbd")), accessModes(corev1.ReadWriteOncePod))
		f.event(refused, `ReadWriteOncePod needs the node plugin and a StorageClass that gives "volumeSource" as csi`)
	},
	"monitors of message protocol 2": func(f *fixture, _, _ *storagev1.StorageClass) {
		class := f.class("v2", func(c *storagev1.StorageClass) {
			source("csi")(c)
			c.Parameters["monitors"] = "v2:" + rig.Ceph.MonitorV2
			c.Parameters["mapOptions"] = "ms_mode=prefer-crc, queue_depth=64"
		})
		claim := f.claim("v2", class, nil)
		pv := f.bound(claim)
		f.isCSI(pv, true)
		for key, want := range map[string]string{"monitors": "v2:" + rig.Ceph.MonitorV2, "mapOptions": "ms_mode=prefer-crc,queue_depth=64"} {
			if got := pv.Spec.CSI.VolumeAttributes[key]; got != want {
				f.Errorf("%s: got %q, want %q", key, got, want)
			}
		}
		// Neither deletion nor growth minds.
		f.ask(claim, "2Gi")
		f.grown(claim, "2Gi")
		f.delete(claim)
		f.gone(pv)
	},
	"options without a source": func(f *fixture, _, _ *storagev1.StorageClass) {
		class := f.class("options", func(c *storagev1.StorageClass) { c.Parameters["mapOptions"] = "queue_depth=64" })
		claim := f.claim("options", class, nil)
		if hasInTree(f.T) {
			f.event(claim, `parameter "mapOptions" is for volumes of the node plugin`)
			f.pending(claim)
			return
		}
		if got := f.bound(claim).Spec.CSI.VolumeAttributes["mapOptions"]; got != "queue_depth=64" {
			f.Errorf("got the options %q", got)
		}
	},
	"the user's secret": func(f *fixture, _, _ *storagev1.StorageClass) {
		f.secret(namespace, f.name+"-keys", corev1.SecretTypeOpaque, f.userKey)
		class := f.class("central", func(c *storagev1.StorageClass) {
			source("csi")(c)
			c.Parameters["userSecretName"], c.Parameters["userSecretNamespace"] = f.name+"-keys", namespace
		})
		pv := f.bound(f.claim("central", class, nil))
		want := &corev1.SecretReference{Namespace: namespace, Name: f.name + "-keys"}
		if diff := cmp.Diff(want, pv.Spec.CSI.NodeStageSecretRef); diff != "" {
			f.Errorf("secret (-want +got):\n%s", diff)
		}
		f.must(rig.Kube.Client.CoreV1().Secrets(namespace).Delete(f.Context(), f.name+"-keys", metav1.DeleteOptions{}))
		missing := f.class("missing", func(c *storagev1.StorageClass) {
			source("csi")(c)
			c.Parameters["userSecretName"], c.Parameters["userSecretNamespace"] = f.name+"-gone", namespace
		})
		f.event(f.claim("missing", missing, nil), "secret does not exist")
	},
	"a keyring on the nodes": func(f *fixture, _, _ *storagev1.StorageClass) {
		claim := f.claim("keyring", f.class("keyring", func(c *storagev1.StorageClass) { delete(c.Parameters, "userSecretName") }), nil)
		if hasInTree(f.T) {
			f.isCSI(f.bound(claim), false)
			return
		}
		f.event(claim, `parameter "userSecretName" is missing: the node plugin takes the user's key from a secret`)
		f.pending(claim)
	},
	"the trash": func(f *fixture, _, _ *storagev1.StorageClass) {
		class := f.class("kept", func(c *storagev1.StorageClass) {
			source("csi")(c)
			c.Parameters["trashRetention"] = "3s"
		})
		claim := f.claim("kept", class, nil)
		pv := f.bound(claim)
		// The volume alone says how it is deleted.
		f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(f.Context(), class.Name, metav1.DeleteOptions{}))
		f.delete(claim)
		f.eventually(func(ctx context.Context) error {
			trash, err := rig.Ceph.Trash(ctx, f.name)
			if err == nil && !slices.Contains(trash, pv.Spec.CSI.VolumeAttributes["image"]) {
				err = fmt.Errorf("the trash has %q", trash)
			}
			return err
		})
		f.gone(pv)
	},
	"growth": func(f *fixture, _, csi *storagev1.StorageClass) {
		for name, change := range map[string]func(*corev1.PersistentVolumeClaim){"grow": nil, "grow-raw": block} {
			claim := f.claim(name, csi, change)
			f.bound(claim)
			f.ask(claim, "3G")
			f.grown(claim, "2862Mi") // rounded up to a MiB
		}
	},
	"clones": func(f *fixture, _, csi *storagev1.StorageClass) {
		inTree := f.class("clones", func(c *storagev1.StorageClass) {
			source("rbd")(c)
			c.Parameters["fsType"] = "xfs"
		})
		f.bound(f.claim("old", inTree, nil))
		for _, test := range []struct {
			name, of string
			class    *storagev1.StorageClass
		}{
			{"new", "old", csi}, {"newer", "new", csi}, {"back", "newer", inTree},
		} {
			claim := f.claim(test.name, test.class, func(c *corev1.PersistentVolumeClaim) {
				from(test.of)(c)
				c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("2Gi")
			})
			pv := f.bound(claim)
			f.isCSI(pv, test.class == csi)
			// The class of the clone does not decide on its file system.
			if diff := cmp.Diff([]string{"nouuid"}, pv.Spec.MountOptions); diff != "" {
				f.Errorf("mount options of %s (-want +got):\n%s", test.name, diff)
			}
			if test.of == "old" { // which is smaller, so kubelet is to grow the file system
				f.eventually(func(ctx context.Context) error {
					live, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(f.name).Get(ctx, claim.Name, metav1.GetOptions{})
					if err == nil && !condition(live, corev1.PersistentVolumeClaimFileSystemResizePending) {
						err = fmt.Errorf("the claim has the conditions %+v", live.Status.Conditions)
					}
					return err
				})
			}
		}
	},
	"a second volume of the image": func(f *fixture, _, csi *storagev1.StorageClass) {
		claim := f.claim("twice", csi, nil)
		pv := f.bound(claim)
		second := f.static(f.name+"-second", csi.Name, pv.Spec.PersistentVolumeSource, nil, "other")
		f.delete(claim)
		f.event(pv, fmt.Sprintf("is also the image of volume %q", second.Name))
		f.must(rig.Kube.Client.CoreV1().PersistentVolumes().Delete(f.Context(), second.Name, metav1.DeleteOptions{}))
		f.gone(pv)
	},
}

// withoutPlugin is for a provisioner that can't know whether the node plugin is installed. A
// class that says so is believed. The plugin is not there when this runs.
func withoutPlugin(r *restricted) {
	class := r.fixture.class("believed", func(c *storagev1.StorageClass) {
		c.Provisioner, c.Parameters = r.provisionerName, maps.Clone(r.class.Parameters)
		c.Parameters["volumeSource"] = "csi"
	})
	claim := r.claim(r.ns+"-csi", class, nil)
	r.isCSI(r.bound(claim), true)
	r.served(claim)
	if !hasInTree(r.T) {
		r.refused("whether the node plugin is installed is not known")
		r.event(r.claim(r.ns, r.class, nil), "the provisioner may not read its CSIDriver")
	}
}
