// SPDX-License-Identifier: Apache-2.0

package trash_test

import (
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

// second returns a second volume, of another name, that names the first one's image.
func (w *world) second() *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "second", UID: "uid-second", Annotations: map[string]string{volume.AnnClusterFSID: w.ceph.FSID()}},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{
				RBD: &corev1.RBDPersistentVolumeSource{CephMonitors: []string{"10.0.0.1"}, RBDPool: testPool, RBDImage: testImage},
			},
			ClaimRef:                      &corev1.ObjectReference{Namespace: "elsewhere", Name: "copy"},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
	}
}

func asCSI(pv *corev1.PersistentVolume) {
	pv.Annotations = nil
	pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
		Driver: "rbd.csi.ceph.com", VolumeHandle: testImage,
		VolumeAttributes: map[string]string{"pool": testPool, "clusterID": "c", "staticVolume": "true"},
	}}
}

// sent returns the events since the last call.
func (w *world) sent() (sent []string) {
	for {
		select {
		case event := <-w.events.Events:
			sent = append(sent, event)
		default:
			return sent
		}
	}
}

// TestPurgeOfRestored: an image stays in the trash for as long as a volume names it again:
// one that was restored from a backup, or another one. An event on the volume says how to
// bring the image back.
func TestPurgeOfRestored(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*corev1.PersistentVolume)
		kept   bool
	}{
		{"restored under its name", func(pv *corev1.PersistentVolume) {
			pv.Name, pv.Spec.PersistentVolumeReclaimPolicy = "pvc-1234", corev1.PersistentVolumeReclaimDelete
		}, true},
		{"another one", func(*corev1.PersistentVolume) {}, true},
		{"by a CSI source", asCSI, true},
		{"itself, which the API has still", func(pv *corev1.PersistentVolume) {
			pv.Name, pv.UID, pv.Status.Phase = "pvc-1234", "uid-first", corev1.VolumeReleased
			pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		}, false},
		{"itself, which somebody has rescued", func(pv *corev1.PersistentVolume) {
			pv.Name, pv.UID, pv.Status.Phase = "pvc-1234", "uid-first", corev1.VolumeReleased
		}, true},
		{"one that is to be deleted, too", func(pv *corev1.PersistentVolume) {
			pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy = corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				id := w.trashNew(t, 0)
				restored := w.second()
				test.change(restored)
				if err := w.volumes.Add(restored); err != nil {
					t.Fatal(err)
				}
				w.pass(10*time.Second + 2*work.RetryCap)
				if !test.kept {
					w.checkPurged(t)
					return
				}
				w.checkTrash(t, testImage)
				checkSame(t, "the notes", []string{id}, w.noted())
				checkSame(t, "the events", []string{`Warning ImageInTrash image "` + testImage + `" in pool "rbd" was deleted with volume "pvc-1234": ` +
					`it stays in the trash for as long as this volume names it; bring it back with: rbd trash restore --pool rbd ` + id}, w.sent())
				checkSame(t, "the log of it", 1, w.countLog("stays in the trash, since another volume names it"))
				if err := w.volumes.Delete(restored); err != nil {
					t.Fatal(err)
				}
				w.pass(2 * work.RetryCap)
				w.checkPurged(t)
			})
		})
	}
}

// TestPurgeOfRestoredByManager: there is no event that says that an image stays once Ceph's
// manager was asked for it, since the manager may remove it at any time.
func TestPurgeOfRestoredByManager(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		w.trashNew(t, 0)
		w.pass(2 * time.Second)
		if err := w.volumes.Add(w.second()); err != nil {
			t.Fatal(err)
		}
		w.pass(2 * managerTime)
		w.checkTrash(t, testImage)
		checkSame(t, "the events", nil, w.sent())
		w.ceph.RunManager()
		w.pass(2 * work.RetryCap)
		w.checkPurgedBy(t, 1, 0)
	})
}

const cloneImage = "kubernetes-dynamic-pvc-5678"

// cloned makes an image and a clone of it, and puts the image into the trash.
func (w *world) cloned(t *testing.T) (id string) {
	t.Helper()
	w.make(t, testImage)
	w.ceph.Clone(testPool, testImage, cloneImage)
	return w.trash(t, testImage, 0)
}

// TestPurgeSource: the source of a clone stays while there is the clone, which the log says
// once, and goes with it, however long that takes.
func TestPurgeSource(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.cloned(t)
		w.pass(time.Hour)
		w.checkTrash(t, testImage)
		checkSame(t, "how often the log says it", 1, w.countLog("stays in the trash for now"))
		w.trash(t, cloneImage, 0)
		w.pass(soon)
		w.checkPurgedBy(t, 0, 2)
	})
}

// TestPurgeFlattened: the source of a clone goes once the clone is flattened and Wake says
// so.
func TestPurgeFlattened(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.cloned(t)
		w.pass(time.Hour)
		w.mustInPool(t, testPool, func(pool *access.Pool) error { return pool.FlattenImage(t.Context(), cloneImage) })
		w.Wake(w.poolID(), id)
		w.pass(100 * time.Millisecond)
		w.checkTrash(t)
		w.checkCounts(t, 0, 0)
	})
}

// TestWakeWhileRemoving: the last clone of an image goes during an attempt to remove the
// image, too late for that attempt. The next attempt comes at once.
func TestWakeWhileRemoving(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		id := w.cloned(t)
		w.pass(time.Hour)
		w.mustInPool(t, testPool, func(pool *access.Pool) error { return pool.FlattenImage(t.Context(), cloneImage) })
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveTrashed, Err: rbd.ErrImageHasSnapshots, Before: func() { w.Wake(w.poolID(), id) }})
		w.Wake(w.poolID(), id)
		w.pass(2 * time.Second)
		w.checkTrash(t)
	})
}

// TestWakeNothing wakes images that are not in the trash, or not due.
func TestWakeNothing(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.Wake(w.poolID(), "")
		w.Wake(w.poolID(), "12ab")
		id := w.trashNew(t, time.Hour)
		w.Wake(w.poolID(), id)
		w.pass(time.Hour - time.Second)
		w.checkTrash(t, testImage)
		w.checkCounts(t, 0, 1)
	})
}

// TestPurgeManagerSource: a source that the manager could not remove goes with its last
// clone, without waiting for the manager to try again.
func TestPurgeManagerSource(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		w.cloned(t)
		w.pass(managerStall / 2)
		w.ceph.RunManager()
		w.checkTrash(t, testImage)
		w.trash(t, cloneImage, 0)
		w.pass(2 * time.Second)
		w.ceph.RunManagerFor(testPool, cloneImage)
		w.pass(looked)
		w.checkPurgedBy(t, 1, 1)
	})
}

// TestPurgeManagerSourceTogether: a source is due in the same round that finds its last
// clone gone. It goes at once although the manager has it on its list.
func TestPurgeManagerSourceTogether(t *testing.T) {
	inManagedWorld(t, func(t *testing.T, w *world) {
		end := w.begin() // so that the manager is asked for both together
		w.make(t, testImage)
		w.ceph.Clone(testPool, testImage, cloneImage)
		w.trash(t, cloneImage, 0)
		w.pass(time.Millisecond)
		w.trash(t, testImage, 0)
		end()
		w.pass(2 * time.Second)
		checkSame(t, "what the manager has to do", 2, w.ceph.HandedOver(testPool))
		w.ceph.RunManagerFor(testPool, testImage) // in vain
		w.ceph.RunManagerFor(testPool, cloneImage)
		w.pass(4 * time.Second)
		w.checkPurgedBy(t, 1, 1)
	})
}

// TestPurgeCloneSnapshots: a snapshot that an attempt to clone an image left does not keep
// the image.
func TestPurgeCloneSnapshots(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.make(t, testImage)
		found, _ := w.ceph.Image(testPool, testImage)
		w.mustInPool(t, testPool, func(pool *access.Pool) error {
			return pool.SnapshotImage(t.Context(), found.ID, image.CloneSnapshot("5678"))
		})
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSnapshots, Err: errors.New("killed")})
		w.trash(t, testImage, 0)
		w.pass(time.Minute)
		w.checkPurgedBy(t, 0, 1)
	})
}

// TestPurgeHeld: an image that is in a group stays, and delays no other one of its pool.
func TestPurgeHeld(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.make(t, "grouped")
		w.make(t, testImage)
		leave := w.ceph.Hold(testPool, "grouped", "rbd group image rm rbd/g rbd/grouped")
		w.trash(t, "grouped", 0)
		w.pass(time.Second)
		w.trash(t, testImage, 0)
		w.pass(time.Minute)
		w.checkTrash(t, "grouped")
		checkSame(t, "how often the log says it", 1, w.countLog("stays in the trash for now", rbd.ErrImageHeld.Error()))
		leave()
		w.pass(2 * work.RetryCap)
		w.checkTrash(t)
	})
}
