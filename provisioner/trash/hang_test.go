// SPDX-License-Identifier: Apache-2.0

package trash_test

import (
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestMoveThatHangs: the move of an image waits for an OSD for longer than any deadline. The
// note stays, and the image goes once the move has ended.
func TestMoveThatHangs(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.make(t, testImage)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, Before: func() { time.Sleep(time.Hour) }}) // of the bubble's clock
		err := w.inPool(t, testPool, func(pool *access.Pool) error { return w.remove(t, pool, testImage, 0) })
		if !errors.Is(err, rbd.ErrTimeout) {
			t.Fatalf("got %v, want ErrTimeout", err)
		}
		w.visit(t)
		pv := w.second()
		pv.Name, pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy = "pvc-1234", corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete
		if err := w.volumes.Add(pv); err != nil {
			t.Fatal(err)
		}
		for range 2 { // before the move has ended, and after
			w.pass(50 * time.Minute)
			checkSame(t, "the number of notes", 1, len(w.noted()))
		}
		w.checkTrash(t, testImage)
		w.mustInPool(t, testPool, func(pool *access.Pool) error { return w.remove(t, pool, testImage, 0) })
		if err := w.volumes.Delete(pv); err != nil {
			t.Fatal(err)
		}
		w.pass(10 * time.Minute)
		w.checkPurged(t)
	})
}

// TestMoveWithoutAnAnswer: the image is in the trash, though nobody heard so, and nobody
// asks again. It goes nevertheless.
func TestMoveWithoutAnAnswer(t *testing.T) {
	for _, lost := range []error{rbd.ErrTimeout, rbd.ErrConnectionLost} {
		inWorld(t, func(t *testing.T, w *world) {
			w.make(t, testImage)
			w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallTrashImage, Err: lost, TakesEffect: true})
			err := w.inPool(t, testPool, func(pool *access.Pool) error { return w.remove(t, pool, testImage, 0) })
			if !errors.Is(err, lost) {
				t.Fatalf("got %v, want %v", err, lost)
			}
			w.pass(10 * time.Minute)
			w.checkPurged(t)
		})
	}
}
