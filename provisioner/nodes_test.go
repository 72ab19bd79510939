// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner"
	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// FakeNodes are nodes as a test wants them. They count the questions.
type FakeNodes struct {
	FakeAnswers
	askedTree, askedPlugin atomic.Int32
}

// FakeAnswers are what FakeNodes answer.
type FakeAnswers struct {
	inTree, plugin       bool
	inTreeErr, pluginErr error
}

// HaveInTree implements provisioner.Nodes.
func (f *FakeNodes) HaveInTree(context.Context) (bool, error) {
	f.askedTree.Add(1)
	return f.inTree, f.inTreeErr
}

// HavePlugin implements provisioner.Nodes.
func (f *FakeNodes) HavePlugin(context.Context) (bool, error) {
	f.askedPlugin.Add(1)
	return f.plugin, f.pluginErr
}

var errSilent = errors.New("the API server does not answer")

// The source of a volume follows from its class and from what nodes can mount. Where Pods
// could not use the volume, its claim is told, once it has the volume.
func TestSource(t *testing.T) {
	const (
		csi    = "csi"
		inTree = "rbd"
		// The claim's event.
		useless = "Warning NotMountable Pods can't use this volume, which is in-tree: Kubernetes can't mount those from 1.31 on: "
		install = "kubectl apply -f deploy/node/"
	)
	for _, test := range []struct {
		name, class string
		nodes       FakeAnswers
		// want is the source, and event what is in the claim's event; or else wantErr is in
		// the error.
		want, event, wantErr string
		// asked says how often both questions are asked.
		askedTree, askedPlugin int32
	}{
		{"none said, in-tree is there", "", FakeAnswers{inTree: true}, inTree, "", "", 1, 0},
		{"none said, both are there", "", FakeAnswers{inTree: true, plugin: true}, inTree, "", "", 1, 0},
		{"none said, the plugin is there", "", FakeAnswers{plugin: true}, csi, "", "", 1, 1},
		{"none said, neither is there", "", FakeAnswers{}, inTree, useless + `the node plugin is not installed: run "` + install + `", then make the claim anew`, "", 1, 1},
		{"none said, the plugin is not known", "", FakeAnswers{pluginErr: provisioner.ErrPluginUnknown}, inTree, useless + "whether the node plugin is installed is not known, " +
			"since the provisioner may not read its CSIDriver: apply the manifests of rbac/", "", 1, 1},
		{"none said, the version is not known", "", FakeAnswers{inTreeErr: errSilent}, "", "", "read the API server's version, to know which volumes nodes can mount: " + errSilent.Error(), 1, 0},
		{"none said, the plugin can't be looked for", "", FakeAnswers{pluginErr: errSilent}, "", "", `look for the node plugin's CSIDriver "rbd.ceph.com": ` + errSilent.Error(), 1, 1},
		{"in-tree, and it is there", inTree, FakeAnswers{inTree: true, plugin: true}, inTree, "", "", 1, 0},
		{"in-tree, and it is not there", inTree, FakeAnswers{plugin: true}, inTree, useless + `use a StorageClass without "volumeSource"`, "", 1, 0},
		{"the plugin, and it is there", csi, FakeAnswers{inTree: true, plugin: true}, csi, "", "", 0, 1},
		{"the plugin, and it is not there", csi, FakeAnswers{inTree: true}, "", "", `the StorageClass gives "volumeSource" as csi, but the node plugin, which mounts such volumes, ` +
			`is not installed: there is no CSIDriver "rbd.ceph.com": run: ` + install, 0, 1},
		{"the plugin, and it is not known", csi, FakeAnswers{pluginErr: provisioner.ErrPluginUnknown}, csi, "", "", 0, 1},
		{"the plugin, and it can't be looked for", csi, FakeAnswers{pluginErr: errSilent}, "", "", errSilent.Error(), 0, 1},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			f.nodes.FakeAnswers = test.nodes
			f.putParameter(t, "volumeSource", test.class)
			pv, state, err := f.provision(t.Context(), t)
			checkSame(t, "how often it was asked", [2]int32{test.askedTree, test.askedPlugin}, [2]int32{f.nodes.askedTree.Load(), f.nodes.askedPlugin.Load()})
			sent := f.sent(t)
			if test.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantErr) {
					t.Fatalf("got %v, want %q", err, test.wantErr)
				}
				checkSame(t, "the state", controller.ProvisioningNoChange, state)
				checkSame(t, "the events", nil, sent)
				checkSame(t, "the number of connections", 0, f.connector.connects.Load())
				f.checkNothing(t)
				// It heals.
				f.nodes.FakeAnswers = FakeAnswers{inTree: true, plugin: true}
				f.mustProvision(t)
				f.checkMade(t)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := f.wantVolume()
			if test.want == csi {
				want = f.wantCSIVolume()
			}
			checkSame(t, "the volume", want, pv)
			f.checkMade(t)
			if test.event == "" {
				checkSame(t, "the events", nil, sent)
			} else if len(sent) != 1 || !strings.HasPrefix(sent[0], test.event) {
				t.Errorf("got the events %q, want one %q", sent, test.event)
			}
		})
	}
}

// wantCSIVolume is wantVolume for the node plugin.
func (f *fixture) wantCSIVolume() *corev1.PersistentVolume {
	pv := f.wantVolume()
	pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
		Driver: "rbd.ceph.com", VolumeHandle: f.ceph.FSID() + "/" + testPool + "/" + testImage, FSType: "xfs",
		VolumeAttributes:   map[string]string{"monitors": "10.0.0.1:6789", "pool": testPool, "image": testImage, "user": "kube"},
		NodeStageSecretRef: &corev1.SecretReference{Namespace: "apps", Name: "user"},
	}}
	return pv
}

// newCSIFixture returns a fixture with the node plugin, and a class that asks for it.
func newCSIFixture(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t)
	f.nodes.FakeAnswers = FakeAnswers{plugin: true}
	f.putParameter(t, "volumeSource", "csi")
	return f
}

func TestProvisionCSI(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	for _, test := range []struct {
		name   string
		change func(*testing.T, *fixture)
		want   func(*corev1.PersistentVolume)
	}{
		{"a block volume, of which several nodes write", func(_ *testing.T, f *fixture) {
			f.options.PVC.Spec.VolumeMode = &block
			f.options.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.VolumeMode, pv.Spec.CSI.FSType = &block, ""
			pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}},
		{"a block volume for all nodes, whose claim names that mode last", func(_ *testing.T, f *fixture) {
			f.options.PVC.Spec.VolumeMode = &block
			f.options.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadWriteMany}
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.VolumeMode, pv.Spec.CSI.FSType = &block, ""
			pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany, corev1.ReadWriteOnce}
		}},
		{"a block volume to read, which is filled from elsewhere", func(_ *testing.T, f *fixture) {
			f.options.PVC.Spec.VolumeMode = &block
			f.options.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.VolumeMode, pv.Spec.CSI.FSType = &block, ""
			pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
		}},
		{"for one Pod", func(_ *testing.T, f *fixture) {
			f.options.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		}},
		{"the user's secret in a namespace of its own, with more than the key", func(t *testing.T, f *fixture) {
			key := f.ceph.AddUser("kube", rbdtest.Caps{AllPools: true}).Key
			f.putSecret(t, "ceph", "keys", corev1.SecretTypeOpaque, map[string]string{access.KeyEntry: " " + key.Reveal() + "\n", "more": "other"})
			f.putParameter(t, "userSecretNamespace", "ceph")
			f.putParameter(t, "userSecretName", "keys")
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.CSI.NodeStageSecretRef = &corev1.SecretReference{Namespace: "ceph", Name: "keys"}
		}},
		{"all monitors, and their names", func(t *testing.T, f *fixture) {
			f.names["mon.ceph"] = addresses("10.0.0.2", "10.0.0.1")
			f.putParameter(t, "monitors", "v2:10.0.0.1:3300; mon.ceph 10.0.0.2:6789")
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.CSI.VolumeAttributes["monitors"] = "v2:10.0.0.1:3300,mon.ceph,10.0.0.2:6789"
		}},
		{"monitors of message protocol 2 only", func(t *testing.T, f *fixture) {
			f.putParameter(t, "monitors", "v2:10.0.0.1")
			f.putParameter(t, "mapOptions", "ms_mode=prefer-crc, queue_depth=64")
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.CSI.VolumeAttributes["monitors"] = "v2:10.0.0.1:3300"
			pv.Spec.CSI.VolumeAttributes["mapOptions"] = "ms_mode=prefer-crc,queue_depth=64"
		}},
		{"a keyring beside the secret has no meaning", func(t *testing.T, f *fixture) {
			f.putParameter(t, "keyring", "/etc/ceph/keyring")
		}, func(*corev1.PersistentVolume) {}},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newCSIFixture(t)
			test.change(t, f)
			want := f.wantCSIVolume()
			test.want(want)
			checkSame(t, "the volume", want, f.mustProvision(t))
			f.checkMade(t)
			checkSame(t, "the second volume", want, f.mustProvision(t))
			checkSame(t, "the events", nil, f.sent(t))
		})
	}
}

// Some of what claims and classes ask for, volumes with one source have and others have not.
func TestSourceRefuses(t *testing.T) {
	modes := func(modes ...corev1.PersistentVolumeAccessMode) func(*testing.T, *fixture) {
		return func(_ *testing.T, f *fixture) { f.options.PVC.Spec.AccessModes = modes }
	}
	block := func(t *testing.T, f *fixture) {
		f.options.PVC.Spec.VolumeMode = new(corev1.PersistentVolumeBlock)
		modes(corev1.ReadWriteMany, "ReadWriteNowhere")(t, f)
	}
	parameter := func(key, value string) func(*testing.T, *fixture) {
		return func(t *testing.T, f *fixture) { f.putParameter(t, key, value) }
	}
	const needs = ` needs the node plugin and a StorageClass that gives "volumeSource" as csi`
	const inTree = " is not supported: supported are ReadWriteOnce and ReadOnlyMany"
	mixed := func(mode corev1.PersistentVolumeAccessMode) string {
		return fmt.Sprintf("access modes ReadOnlyMany and %s on one claim are not supported by the node plugin", mode)
	}
	for _, test := range []struct {
		name   string
		nodes  FakeAnswers
		change func(*testing.T, *fixture)
		want   string
	}{
		{"in-tree for one Pod", FakeAnswers{inTree: true}, modes(corev1.ReadWriteOncePod), "access mode ReadWriteOncePod" + inTree + "; ReadWriteOncePod" + needs},
		{"in-tree for all nodes", FakeAnswers{inTree: true}, modes(corev1.ReadWriteMany), "access mode ReadWriteMany" + inTree},
		{"an in-tree block volume for all nodes", FakeAnswers{inTree: true}, block, "access mode ReadWriteMany, ReadWriteNowhere" + inTree + "; ReadWriteMany" + needs},
		{"the plugin's for all nodes", FakeAnswers{plugin: true}, modes(corev1.ReadWriteMany, corev1.ReadWriteOnce),
			"access mode ReadWriteMany is not supported: supported are ReadWriteOnce, ReadOnlyMany and ReadWriteOncePod, and ReadWriteMany for spec.volumeMode Block only"},
		{"the plugin's block volume, nowhere", FakeAnswers{plugin: true}, block,
			"access mode ReadWriteNowhere is not supported: supported are ReadWriteOnce, ReadOnlyMany, ReadWriteOncePod and ReadWriteMany"},
		{"the plugin's to write and to read", FakeAnswers{plugin: true}, modes(corev1.ReadWriteOnce, corev1.ReadOnlyMany), mixed(corev1.ReadWriteOnce)},
		{"the same in the other order", FakeAnswers{plugin: true}, modes(corev1.ReadOnlyMany, corev1.ReadWriteOnce), mixed(corev1.ReadWriteOnce)},
		{"the plugin's block volume to write and to read", FakeAnswers{plugin: true}, func(t *testing.T, f *fixture) {
			f.options.PVC.Spec.VolumeMode = new(corev1.PersistentVolumeBlock)
			modes(corev1.ReadOnlyMany, corev1.ReadWriteMany)(t, f)
		}, mixed(corev1.ReadWriteMany)},
		{"the plugin's to read, and empty", FakeAnswers{plugin: true}, modes(corev1.ReadOnlyMany),
			"access mode ReadOnlyMany alone would give a volume without a file system, which nobody could ever write to: " +
				"ask for ReadWriteOnce, or name a claim with the content in spec.dataSource"},
		{"the plugin with another file system", FakeAnswers{plugin: true}, parameter("fsType", "btrfs"), `parameter "fsType": the node plugin can't mount "btrfs"`},
		{"in-tree with options", FakeAnswers{inTree: true}, parameter("mapOptions", "queue_depth=64"), `parameter "mapOptions" is for volumes of the node plugin`},
		{"the plugin without a secret", FakeAnswers{plugin: true}, parameter("userSecretName", ""), `parameter "userSecretName" is missing: the node plugin takes`},
		{"the plugin without a key in its secret", FakeAnswers{plugin: true}, func(t *testing.T, f *fixture) {
			f.putSecret(t, "apps", "user", access.TypeRBD, map[string]string{"userKey": "something"})
		}, `user's malformed key: secret "apps/user" has no entry "key": store the key under that name`},
		{"the plugin without a monitor of the right protocol", FakeAnswers{plugin: true}, func(t *testing.T, f *fixture) {
			f.putParameter(t, "monitors", "10.0.0.1:6789, v2:mon.ceph")
			f.putParameter(t, "mapOptions", "ms_mode=secure")
		}, "no remaining monitor speaks message protocol 2 (port 3300)"},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			f.nodes.FakeAnswers = test.nodes
			test.change(t, f)
			_, state, err := f.provision(t.Context(), t)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want %q", err, test.want)
			}
			checkSame(t, "the state", controller.ProvisioningNoChange, state)
			f.checkNothing(t)
		})
	}
}

// The plugin goes away, or a class loses its secret, after an image was made. The claim
// waits for it; once the claim is deleted, its image gets a volume all the same, and so goes.
func TestSourceLost(t *testing.T) {
	for name, lose := range map[string]func(*testing.T, *fixture){
		"the plugin":          func(_ *testing.T, f *fixture) { f.nodes.plugin = false },
		"the plugin's answer": func(_ *testing.T, f *fixture) { f.nodes.pluginErr = errSilent },
	} {
		inBubble(t, name, func(t *testing.T) {
			f := newCSIFixture(t)
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, Err: rbd.ErrTimeout, TakesEffect: true})
			if _, state, err := f.provision(t.Context(), t); !errors.Is(err, rbd.ErrTimeout) || state != controller.ProvisioningInBackground {
				t.Fatalf("got %s, %v", state, err)
			}
			lose(t, f)
			_, state, err := f.provision(t.Context(), t)
			if err == nil || state != controller.ProvisioningNoChange {
				t.Fatalf("got %s, %v, want an error, and that the library remembers the claim", state, err)
			}
			f.dropLive(t)
			checkSame(t, "the volume", f.wantCSIVolume(), f.mustProvision(t))
		})
	}
}

// A clone may have another source than what it is a clone of.
func TestCloneToOtherSource(t *testing.T) {
	for name, from := range map[string]bool{"from in-tree": false, "from the node plugin's": true} {
		for _, to := range []bool{false, true} {
			inBubble(t, name+map[bool]string{false: " to in-tree", true: " to the node plugin's"}[to], func(t *testing.T) {
				f := newCloneFixture(t)
				if from {
					f.changeVolume(t, func(pv *corev1.PersistentVolume) { toPlugin(t, pv, "10.0.0.1:6789") })
				}
				f.nodes.FakeAnswers = FakeAnswers{inTree: !to, plugin: to}
				pv := f.mustProvision(t)
				f.checkClone(t)
				record, err := volume.Read(pv)
				if err != nil {
					t.Fatal(err)
				}
				if record.CSI != to || record.FSType != "xfs" || !slices.Contains(pv.Spec.MountOptions, "nouuid") {
					t.Errorf("got %+v, mount options %q", record, pv.Spec.MountOptions)
				}
			})
		}
	}
}

// Many nodes may read a clone, and the source says which file system it has.
func TestCloneForPlugin(t *testing.T) {
	readers := []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
	for _, test := range []struct{ name, fsType, want string }{
		{"a file system of the plugin", "ext4", ""},
		{"none said, which kubelet took as ext4", "", ""},
		{"another file system", "btrfs", `its source, claim "data", has the file system btrfs, which the node plugin can't mount (it mounts ext3, ext4, xfs): copy its files`},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newCloneFixture(t)
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.RBD.FSType = test.fsType })
			f.nodes.FakeAnswers = FakeAnswers{plugin: true}
			f.options.PVC.Spec.AccessModes = readers
			pv, _, err := f.provision(t.Context(), t)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got %v, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkSame(t, "the file system", test.fsType, pv.Spec.CSI.FSType)
			checkSame(t, "the access modes", readers, pv.Spec.AccessModes)
		})
	}
}

// A volume for the node plugin is deleted like others.
func TestDeleteCSI(t *testing.T) { synctest.Test(t, testDeleteCSI) }

func testDeleteCSI(t *testing.T) {
	f := newCSIFixture(t)
	f.putClass(t, func(c *storagev1.StorageClass) { c.Parameters["trashRetention"] = "1h" })
	pv := f.mustProvision(t)
	pv.ObjectMeta.UID, pv.Status.Phase = "9", corev1.VolumeReleased
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, volume.AnnProvisionedBy, provisioner.DefaultName)
	if err := f.remove(t.Context(), t, pv); err != nil {
		t.Fatal(err)
	}
	checkSame(t, "the images", nil, f.ceph.Images(testPool))
	checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
}
