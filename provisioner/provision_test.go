// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// wantVolume is the volume for the claim that options makes.
func (f *fixture) wantVolume() *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: "pvc-1234",
			Annotations: map[string]string{
				volume.AnnIdentity:                testIdentity,
				volume.AnnKubernetesCluster:       testCluster,
				volume.AnnClusterFSID:             f.ceph.FSID(),
				volume.AnnDeletionUser:            "admin",
				volume.AnnDeletionSecretName:      "admin",
				volume.AnnDeletionSecretNamespace: "kube-system",
			},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    storage("1Gi"),
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				RBD: &corev1.RBDPersistentVolumeSource{
					CephMonitors: []string{"10.0.0.1:6789"},
					RBDPool:      testPool,
					RBDImage:     testImage,
					RadosUser:    "kube",
					SecretRef:    &corev1.SecretReference{Name: "user"},
					FSType:       "xfs",
				},
			},
		},
	}
}

// TestProvisionTwice: the library could not save the volume, and calls again.
func TestProvisionTwice(t *testing.T) { synctest.Test(t, testProvisionTwice) }

func testProvisionTwice(t *testing.T) {
	f := newFixture(t)
	first := f.mustProvision(t)
	checkSame(t, "the volume", f.wantVolume(), first)
	f.checkMade(t)

	checkSame(t, "the second volume", first, f.mustProvision(t))
	f.checkMade(t)

	f.restart(t)
	checkSame(t, "the volume of the next process", first, f.mustProvision(t))
	f.checkMade(t)
	checkSame(t, "the events", nil, f.sent(t))
}

func TestProvisionVolume(t *testing.T) {
	block, filesystem := corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem
	retain := corev1.PersistentVolumeReclaimRetain
	for _, test := range []struct {
		name   string
		change func(*testing.T, *fixture)
		want   func(*corev1.PersistentVolume)
	}{
		{"the reclaim policy of the class", func(t *testing.T, f *fixture) {
			f.putClass(t, func(c *storagev1.StorageClass) { c.ReclaimPolicy = &retain })
		}, func(pv *corev1.PersistentVolume) { pv.Spec.PersistentVolumeReclaimPolicy = retain }},
		{"the mount options of the class", func(t *testing.T, f *fixture) {
			f.putClass(t, func(c *storagev1.StorageClass) { c.MountOptions = []string{"noatime", "discard"} })
		}, func(pv *corev1.PersistentVolume) { pv.Spec.MountOptions = []string{"noatime", "discard"} }},
		{"a block volume has no file system", func(_ *testing.T, f *fixture) {
			f.options.PVC.Spec.VolumeMode = &block
		}, func(pv *corev1.PersistentVolume) { pv.Spec.VolumeMode, pv.Spec.RBD.FSType = &block, "" }},
		{"the mode of the claim", func(_ *testing.T, f *fixture) {
			f.options.PVC.Spec.VolumeMode = &filesystem
		}, func(pv *corev1.PersistentVolume) { pv.Spec.VolumeMode = &filesystem }},
		{"all access modes of the claim", func(_ *testing.T, f *fixture) {
			f.options.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteOnce}
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteOnce}
		}},
		{"the capacity is what the image has, not what was asked for", func(_ *testing.T, f *fixture) {
			f.options.PVC.Spec.Resources.Requests = storage("1023.5Mi")
		}, func(*corev1.PersistentVolume) {}},
		{"the user's secret in a namespace of its own", func(t *testing.T, f *fixture) {
			f.putParameter(t, "userSecretNamespace", "kube-system")
			f.putParameter(t, "userSecretName", "admin")
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.RBD.SecretRef = &corev1.SecretReference{Namespace: "kube-system", Name: "admin"}
		}},
		{"no user's secret: kubelet reads a keyring, and there is nothing to check", func(t *testing.T, f *fixture) {
			f.putParameter(t, "userSecretName", "")
			f.dropSecret(t, "apps", "user")
		}, func(pv *corev1.PersistentVolume) { pv.Spec.RBD.SecretRef = nil }},
		{"a keyring", func(t *testing.T, f *fixture) {
			f.putParameter(t, "userSecretName", "")
			f.putParameter(t, "keyring", "/etc/kube/ceph.keyring")
			f.dropSecret(t, "apps", "user")
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.RBD.SecretRef, pv.Spec.RBD.Keyring = nil, "/etc/kube/ceph.keyring"
		}},
		{"addresses of names, and no monitor of protocol 2", func(t *testing.T, f *fixture) {
			f.names["mon.ceph"] = addresses("10.0.0.2", "10.0.0.1")
			f.putParameter(t, "monitors", "v2:10.0.0.1:3300, mon.ceph")
		}, func(pv *corev1.PersistentVolume) {
			pv.Spec.RBD.CephMonitors = []string{"10.0.0.1:6789", "10.0.0.2:6789"}
		}},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			test.change(t, f)
			want := f.wantVolume()
			test.want(want)
			checkSame(t, "the volume", want, f.mustProvision(t))
			f.checkMade(t)
			checkSame(t, "the second volume", want, f.mustProvision(t))
			checkSame(t, "the events", nil, f.sent(t))
		})
	}
}

func TestProvisionUsePVName(t *testing.T) { synctest.Test(t, testProvisionUsePVName) }

func testProvisionUsePVName(t *testing.T) {
	f := newFixture(t)
	f.usePVName = true
	f.restart(t)
	want := f.wantVolume()
	want.Spec.RBD.RBDImage = "pvc-1234"
	for range 2 {
		checkSame(t, "the volume", want, f.mustProvision(t))
		checkSame(t, "the images", []string{"pvc-1234"}, f.ceph.Images(testPool))
	}
}

// TestProvisionSharesNothing: a change to the volume must not change the claim and the
// class, which belong to a cache.
func TestProvisionSharesNothing(t *testing.T) { synctest.Test(t, testProvisionSharesNothing) }

func testProvisionSharesNothing(t *testing.T) {
	f := newFixture(t)
	block := corev1.PersistentVolumeBlock
	f.options.PVC.Spec.VolumeMode = &block
	f.putClass(t, func(c *storagev1.StorageClass) { c.MountOptions = []string{"noatime"} })
	claim, class := f.options.PVC.DeepCopy(), f.options.StorageClass.DeepCopy()

	pv := f.mustProvision(t)
	pv.Spec.AccessModes[0] = corev1.ReadWriteMany
	pv.Spec.MountOptions[0] = "changed"
	*pv.Spec.VolumeMode = corev1.PersistentVolumeFilesystem
	checkSame(t, "the claim, after the volume was changed", claim, f.options.PVC)
	checkSame(t, "the class, after the volume was changed", class, f.options.StorageClass)
}

func TestProvisionDataPool(t *testing.T) {
	for _, test := range []struct {
		name, dataPool string
		want           rbd.Image
	}{
		{"an erasure-coded one", "data", rbd.Image{
			Features: []string{rbd.FeatureDataPool, rbd.FeatureLayering}, DataPool: "data",
		}},
		{"the pool itself, which librbd takes for none", testPool, rbd.Image{Features: []string{rbd.FeatureLayering}}},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			f.ceph.AddErasurePool("data", true)
			f.putParameter(t, "dataPool", test.dataPool)
			test.want.SizeBytes, test.want.Metadata = 1<<30, testMarks()
			for _, attempt := range []string{"first", "second"} {
				pv, state, err := f.provision(t.Context(), t)
				if err != nil {
					t.Fatalf("the %s attempt: %s: %v", attempt, state, err)
				}
				checkSame(t, "the volume", f.wantVolume(), pv)
				image, _ := f.ceph.Image(testPool, testImage)
				image.ID = "" // any will do
				checkSame(t, "the image", test.want, image)
			}
		})
	}
}

// TestProvisionInterrupted: the caller never learns the outcome of a call. The library
// must be told to remember the claim, and after the next attempt there must be one image
// with its owner metadata.
func TestProvisionInterrupted(t *testing.T) {
	lost := func(call rbdtest.Call) rbdtest.FakeFault { return rbdtest.FakeFault{Call: call, Err: rbd.ErrTimeout} }
	late := func(call rbdtest.Call) rbdtest.FakeFault {
		return rbdtest.FakeFault{Call: call, Err: rbd.ErrTimeout, TakesEffect: true}
	}
	nothing := func(*testing.T, *fixture) {}
	remains := func(_ *testing.T, f *fixture) { f.ceph.AddRemains(testPool, testImage, rbdtest.RemainsID) }
	unmarked := func(t *testing.T, f *fixture) {
		f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
	}
	for _, test := range []struct {
		name   string
		before func(*testing.T, *fixture)
		faults []rbdtest.FakeFault
		want   error
	}{
		{"the image was made, the answer lost", nothing, []rbdtest.FakeFault{late(rbdtest.CallCreateImage)}, rbd.ErrTimeout},
		{"the image was not made, the answer lost", nothing, []rbdtest.FakeFault{lost(rbdtest.CallCreateImage)}, rbd.ErrTimeout},
		{"the connection broke half-way through", nothing, []rbdtest.FakeFault{
			{Call: rbdtest.CallCreateImage, Err: rbd.ErrConnectionLost, HalfWay: true},
		}, rbd.ErrConnectionLost},
		{"an error that nobody knows", nothing, []rbdtest.FakeFault{
			{Call: rbdtest.CallCreateImage, Err: errUnknown, TakesEffect: true},
		}, errUnknown},
		{"the metadata was written, the answer lost", nothing, []rbdtest.FakeFault{late(rbdtest.CallSetMetadata)}, rbd.ErrTimeout},
		{"the metadata was not written", nothing, []rbdtest.FakeFault{lost(rbdtest.CallSetMetadata)}, rbd.ErrTimeout},
		{"the pool got full before the metadata", nothing, []rbdtest.FakeFault{
			{Call: rbdtest.CallSetMetadata, Err: rbd.ErrPoolFull},
		}, rbd.ErrPoolFull},
		{"somebody removed the image before the metadata", nothing, []rbdtest.FakeFault{
			{Call: rbdtest.CallSetMetadata, Err: rbd.ErrImageNotFound},
		}, rbd.ErrImageNotFound},
		{"an image that can't be looked at", unmarked, []rbdtest.FakeFault{lost(rbdtest.CallImage)}, rbd.ErrTimeout},
		{"an image that can't be marked", unmarked, []rbdtest.FakeFault{lost(rbdtest.CallSetMetadata)}, rbd.ErrTimeout},
		{"remains that were cleared, the answer lost", remains, []rbdtest.FakeFault{late(rbdtest.CallRemoveImage)}, rbd.ErrTimeout},
		{"remains that were not cleared", remains, []rbdtest.FakeFault{lost(rbdtest.CallRemoveImage)}, rbd.ErrTimeout},
		{"the second creation behind remains", remains, []rbdtest.FakeFault{
			{Call: rbdtest.CallCreateImage}, late(rbdtest.CallCreateImage),
		}, rbd.ErrTimeout},
		{"the metadata behind remains", remains, []rbdtest.FakeFault{lost(rbdtest.CallSetMetadata)}, rbd.ErrTimeout},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			test.before(t, f)
			for _, fault := range test.faults {
				f.ceph.Fake(fault)
			}
			_, state, err := f.provision(t.Context(), t)
			if !errors.Is(err, test.want) {
				t.Fatalf("got the error %v, want %v", err, test.want)
			}
			checkSame(t, "the state", controller.ProvisioningInBackground, state)

			checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
			f.checkMade(t)
		})
	}
}

var errUnknown = errors.New("unknown")

func TestProvisionClearsRemains(t *testing.T) {
	for _, remains := range []rbdtest.Remains{rbdtest.RemainsID, rbdtest.RemainsDirectory, rbdtest.RemainsDirectoryOnly} {
		inBubble(t, remains.String(), func(t *testing.T) {
			f := newFixture(t)
			f.ceph.AddRemains(testPool, testImage, remains)
			checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
			f.checkMade(t)
		})
	}
}

func TestProvisionEndedContext(t *testing.T) { synctest.Test(t, testProvisionEndedContext) }

func testProvisionEndedContext(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	pv, _, err := f.provision(ctx, t)
	if err != nil {
		t.Fatalf("an ended context kept the claim from being served: %v", err)
	}
	checkSame(t, "the volume", f.wantVolume(), pv)
	if err := f.remove(ctx, t, pv); err != nil {
		t.Errorf("an ended context kept the image from being removed: %v", err)
	}
	f.checkNothing(t)
}
