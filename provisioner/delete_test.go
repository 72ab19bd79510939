// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Delete calls the Provisioner's Delete for a volume whose release the cache has just
// shown, which is the usual case.
func (f *fixture) Delete(ctx context.Context, pv *corev1.PersistentVolume) error {
	released := pv.DeepCopy()
	released.Status.Phase, released.Spec.PersistentVolumeReclaimPolicy = corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete
	f.Seen(nil, released)
	return f.Provisioner.Delete(ctx, pv)
}

// remove calls Delete and checks what must hold whatever the result is.
func (f *fixture) remove(ctx context.Context, t *testing.T, pv *corev1.PersistentVolume) error {
	t.Helper()
	before := pv.DeepCopy()
	err := f.Delete(f.withLog(ctx), pv)
	checkSame(t, "the volume that was given in", before, pv)
	f.purgeFor(t, 5*time.Second)
	f.checkAfter(t, err)
	return err
}

// released returns the volume of an existing image, as the library saved it and
// Kubernetes released it.
func (f *fixture) released(t *testing.T) *corev1.PersistentVolume {
	t.Helper()
	pv := f.mustProvision(t)
	pv.Annotations["pv.kubernetes.io/provisioned-by"] = provisioner.DefaultName
	pv.Spec.StorageClassName = f.options.StorageClass.Name
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	pv.Status.Phase = corev1.VolumeReleased
	f.connector.connects.Store(0)
	return pv
}

// retire removes from a volume what the retired provisioner did not write.
func retire(pv *corev1.PersistentVolume) {
	for _, annotation := range []string{
		volume.AnnClusterFSID, volume.AnnDeletionUser, volume.AnnDeletionSecretName, volume.AnnDeletionSecretNamespace,
	} {
		delete(pv.Annotations, annotation)
	}
}

// checkKept calls Delete twice: both calls must change nothing and return the same error.
func (f *fixture) checkKept(t *testing.T, pv *corev1.PersistentVolume, wantErr error, wants ...string) {
	t.Helper()
	states := func() (images []rbd.Image) {
		for _, c := range []*rbdtest.Cluster{f.ceph, f.other} {
			image, _ := c.Image(testPool, testImage)
			images = append(images, image)
		}
		return images
	}
	before := states()
	var texts []string
	for range 2 {
		err := f.remove(t.Context(), t, pv)
		if err == nil || wantErr != nil && !errors.Is(err, wantErr) {
			t.Fatalf("got the error %v, want %v", err, wantErr)
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("got the error %q, want it to say %q", err, want)
			}
		}
		texts = append(texts, err.Error())
	}
	checkSame(t, "the second text", texts[0], texts[1])
	checkSame(t, "the images of that name", before, states())
}

// checkRemoved calls Delete twice: both calls must succeed and leave nothing.
func (f *fixture) checkRemoved(t *testing.T, pv *corev1.PersistentVolume) {
	t.Helper()
	for _, attempt := range []string{"first", "second"} {
		if err := f.remove(t.Context(), t, pv); err != nil {
			t.Fatalf("the %s attempt: %v", attempt, err)
		}
		f.checkNothing(t)
	}
}

func TestDelete(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*testing.T, *fixture, *corev1.PersistentVolume)
	}{
		{"as it was made", func(*testing.T, *fixture, *corev1.PersistentVolume) {}},
		{"the class is gone, which nobody needs", func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) { f.dropClass(t) }},
		{"the user's secret is gone, which nobody needs", func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.dropSecret(t, "apps", "user")
		}},
		{"the volume does not say who made it", func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
			delete(pv.Annotations, volume.AnnIdentity)
		}},
		{"the image does not say whose it is, as those of the retired provisioner", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			if err := f.Delete(f.withLog(t.Context()), pv); err != nil {
				t.Fatal(err)
			}
			f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 20}, nil)
		}},
		{"the image was grown and carries metadata of others", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			if err := f.Delete(f.withLog(t.Context()), pv); err != nil {
				t.Fatal(err)
			}
			f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 5 << 30}, marksWith(map[string]string{"backup": "nightly"}))
		}},
		{"the image is gone", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			if err := f.Delete(f.withLog(t.Context()), pv); err != nil {
				t.Fatal(err)
			}
		}},
		{"an image goes between looking and removing", func(_ *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, Err: rbd.ErrImageNotFound, TakesEffect: true})
		}},
		{"the pool is full", func(_ *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.ceph.SetFull(testPool, true)
		}},
		{"one of the volume's monitors is dead", func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
			pv.Spec.RBD.CephMonitors = []string{deadMonitor, "10.0.0.2:6789"}
		}},
		{"a volume of the node plugin", func(t *testing.T, _ *fixture, pv *corev1.PersistentVolume) { toPlugin(t, pv, "10.0.0.1:6789") }},
		{"one whose monitors speak message protocol 2 only", func(t *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
			toPlugin(t, pv, "v2:10.0.0.1:3300")
		}},
		{"one whose monitors moved", func(t *testing.T, _ *fixture, pv *corev1.PersistentVolume) { toPlugin(t, pv, "v2:10.0.0.9:3300") }},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			test.change(t, f, pv)
			f.checkRemoved(t, pv)
			checkSame(t, "the events", nil, f.sent(t))
		})
	}
}

// toPlugin gives a volume the source of the node plugin.
func toPlugin(t *testing.T, pv *corev1.PersistentVolume, monitors string) {
	t.Helper()
	record, err := volume.Read(pv)
	if err != nil {
		t.Fatal(err)
	}
	record.CSI, record.Monitors = true, []string{monitors}
	record.Write(pv)
}

func TestDeleteRemains(t *testing.T) {
	for _, remains := range []rbdtest.Remains{rbdtest.RemainsID, rbdtest.RemainsDirectory, rbdtest.RemainsDirectoryOnly} {
		inBubble(t, remains.String(), func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			if err := f.remove(t.Context(), t, pv); err != nil {
				t.Fatal(err)
			}
			f.ceph.AddRemains(testPool, testImage, remains)
			f.checkRemoved(t, pv)
		})
	}
}

func TestDeleteNotOurs(t *testing.T) { synctest.Test(t, testDeleteNotOurs) }

func testDeleteNotOurs(t *testing.T) {
	for _, identity := range []string{"elsewhere", provisioner.DefaultName, ""} {
		f := newFixture(t)
		pv := f.released(t)
		pv.Annotations[volume.AnnIdentity] = identity
		checkIgnored(t, f.remove(t.Context(), t, pv))
		checkSame(t, "the number of connections", 0, f.connector.connects.Load())
		f.checkMade(t)
	}
}

func TestDeleteKeeps(t *testing.T) {
	reseed := func(metadata map[string]string) func(*testing.T, *fixture, *corev1.PersistentVolume) {
		return func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			if err := f.Delete(f.withLog(t.Context()), pv); err != nil {
				t.Fatal(err)
			}
			f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, metadata)
		}
	}
	fake := func(fault rbdtest.FakeFault) func(*testing.T, *fixture, *corev1.PersistentVolume) {
		fault.Times = 2
		return func(_ *testing.T, f *fixture, _ *corev1.PersistentVolume) { f.ceph.Fake(fault) }
	}
	for _, test := range []struct {
		name    string
		change  func(*testing.T, *fixture, *corev1.PersistentVolume)
		wantErr error
		want    []string
	}{
		{"a volume without an rbd source", func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
			pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "rbd.csi.ceph.com"}}
		}, volume.ErrNoRBDSource, []string{"to give its image up"}},
		{"a volume that names no image", func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) { pv.Spec.RBD.RBDImage = "" },
			nil, []string{"names no monitors, pool or image"}},
		{"a volume whose monitors can't be read", func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
			pv.Spec.RBD.CephMonitors = []string{"10.0.0.1:port"}
		}, nil, []string{`the volume's source: monitor "10.0.0.1:port"`, "to give the image up"}},
		{"an image that a node has mapped", func(_ *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.ceph.Watch(testPool, testImage, "10.0.2.1:0/77")
			f.ceph.Watch(testPool, testImage, "10.0.2.2:0/78")
		}, rbd.ErrImageInUse, []string{`image "kubernetes-dynamic-pvc-1234" in pool "rbd"`, "10.0.2.1:0/77, 10.0.2.2:0/78"}},
		{"an image with snapshots", func(_ *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.ceph.AddSnapshot(testPool, testImage, "b")
			f.ceph.AddSnapshot(testPool, testImage, "a")
		}, rbd.ErrImageHasSnapshots, []string{": a, b: it will be removed once they are gone"}},
		{"the image of another volume", reseed(marksWith(map[string]string{volume.MetaVolume: "pvc-other"})), nil,
			[]string{"is not this volume's", `its metadata kubernetes.io/created-for/pv/name is "pvc-other"`, "left alone"}},
		{"the image of another provisioner", reseed(map[string]string{volume.MetaIdentity: "elsewhere"}), nil,
			[]string{"is not this volume's", `its metadata rbdProvisionerIdentity is "elsewhere"`}},
		{"no right to look at images", func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", rbdtest.Caps{}).Key)
		}, rbd.ErrPermissionDenied, []string{`client.admin, with the key in secret "kube-system/admin", needs at least`}},
		{"no right to remove images", fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, Err: rbd.ErrPermissionDenied}),
			rbd.ErrPermissionDenied, []string{"client.admin"}},
		{"a pool that can't be opened in time", fake(rbdtest.FakeFault{Call: rbdtest.CallOpenPool, Err: rbd.ErrTimeout}),
			rbd.ErrTimeout, []string{"check the health of the Ceph cluster"}},
		{"an image that can't be looked at in time", fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Err: rbd.ErrTimeout}),
			rbd.ErrTimeout, []string{"check the health of the Ceph cluster"}},
		{"a connection that breaks", fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, Err: rbd.ErrConnectionLost}),
			rbd.ErrConnectionLost, []string{"check the health of the Ceph cluster"}},
		{"a note that can't be made in time", fake(rbdtest.FakeFault{Call: rbdtest.CallSetNotes, Err: rbd.ErrTimeout}),
			rbd.ErrTimeout, []string{"check the health of the Ceph cluster"}},
		{"a retention that can't be read", func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
			pv.Annotations[volume.AnnTrashRetention] = "a day"
		}, nil, []string{`the volume's annotation rbd.ceph.com/trash-retention: "a day" is not a duration`}},
		{"a group that it is in", func(_ *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.ceph.Hold(testPool, testImage, "rbd group image rm rbd/g rbd/a")
			f.ceph.Hold(testPool, testImage, "rbd group snap rm rbd/g@s")
		}, rbd.ErrImageHeld, []string{"it will be removed after: rbd group image rm rbd/g rbd/a && rbd group snap rm rbd/g@s"}},
		{"no pool", func(_ *testing.T, f *fixture, pv *corev1.PersistentVolume) { pv.Spec.RBD.RBDPool = "missing" },
			rbd.ErrPoolNotFound, []string{`open pool "missing"`}},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			f.restart(t) // no secret is remembered, as a second later
			test.change(t, f, pv)
			f.checkKept(t, pv, test.wantErr, test.want...)
		})
	}
}

// TestDeleteLater: something keeps the image for a while.
func TestDeleteLater(t *testing.T) {
	for _, test := range []struct {
		name    string
		begin   func(*fixture) (end func())
		wantErr error
	}{
		{"a client that lets go", func(f *fixture) func() { return f.ceph.Watch(testPool, testImage, "10.0.2.1:0/77") }, rbd.ErrImageInUse},
		{"a snapshot that is removed", func(f *fixture) func() {
			f.ceph.AddSnapshot(testPool, testImage, "backup")
			return func() { f.ceph.RemoveSnapshot(testPool, testImage, "backup") }
		}, rbd.ErrImageHasSnapshots},
		{"monitors that come back", func(f *fixture) func() {
			f.ceph.SetUnreachable(true)
			return func() { f.ceph.SetUnreachable(false) }
		}, rbd.ErrUnreachable},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			end := test.begin(f)
			f.checkKept(t, pv, test.wantErr)
			end()
			f.checkRemoved(t, pv)
		})
	}
}

// TestDeleteInterrupted: the caller never learns the outcome of a move. The volume stays,
// and the next attempt leaves nothing behind.
func TestDeleteInterrupted(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault rbdtest.FakeFault
	}{
		{"the image was moved, the answer lost", rbdtest.FakeFault{Err: rbd.ErrTimeout, TakesEffect: true}},
		{"the image was not moved", rbdtest.FakeFault{Err: rbd.ErrTimeout}},
		{"the image is on its way", rbdtest.FakeFault{Err: rbd.ErrTimeout, HalfWay: true}},
		{"the connection broke half-way through", rbdtest.FakeFault{Err: rbd.ErrConnectionLost, HalfWay: true}},
		{"an error that nobody knows", rbdtest.FakeFault{Err: errUnknown, HalfWay: true}},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			test.fault.Call = rbdtest.CallTrashImage
			f.ceph.Fake(test.fault)
			if err := f.remove(t.Context(), t, pv); err == nil {
				t.Fatal("got no error, and so the volume would be gone")
			}
			f.checkRemoved(t, pv)
		})
	}
}

// TestDeleteGoesOn: an earlier removal of a large image in place was cut off. Each attempt
// gets a bit further, and nothing is wrong with Ceph.
func TestDeleteGoesOn(t *testing.T) { synctest.Test(t, testDeleteGoesOn) }

func testDeleteGoesOn(t *testing.T) {
	f := newFixture(t)
	pv := f.released(t)
	if err := f.remove(t.Context(), t, pv); err != nil {
		t.Fatal(err)
	}
	f.ceph.AddRemains(testPool, testImage, rbdtest.RemainsID)
	f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, Err: rbd.ErrTimeout, Times: 2})
	var texts []string
	for range 2 {
		err := f.remove(t.Context(), t, pv)
		if err == nil {
			t.Fatal("got no error, and so the volume would be gone")
		}
		texts = append(texts, err.Error())
	}
	checkSame(t, "the second text", texts[0], texts[1])
	f.checkRemoved(t, pv)
}
