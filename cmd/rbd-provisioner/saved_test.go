// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

// TestSavedVolumeHidesNoNewerOne has the library add a volume that it saved before and
// after the informer sees it.
func TestSavedVolumeHidesNoNewerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		volume := func(phase corev1.PersistentVolumePhase) *corev1.PersistentVolume {
			return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Status: corev1.PersistentVolumeStatus{Phase: phase}}
		}
		informer := informers.NewSharedInformerFactory(fake.NewClientset(), 0).Core().V1().PersistentVolumes().Informer()
		store := ownVolumes{informer, nil}.GetStore()
		want := func(what string, want *corev1.PersistentVolume) {
			t.Helper()
			got, exists, err := store.GetByKey("pv")
			if err != nil || exists != (want != nil) || want != nil && got.(*corev1.PersistentVolume).Status.Phase != want.Status.Phase {
				t.Errorf("%s: got %+v, %t, %v, want %+v", what, got, exists, err, want)
			}
		}
		do := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		want("at first", nil)
		do(store.Add(volume("")))
		want("saved, and not seen yet", volume(""))
		if names := informer.GetStore().ListKeys(); len(names) > 0 {
			t.Errorf("the informer's own store has %v", names)
		}
		do(informer.GetStore().Add(volume(corev1.VolumeReleased)))
		want("seen", volume(corev1.VolumeReleased))
		do(informer.GetStore().Delete(volume("")))
		want("deleted", nil)

		do(informer.GetStore().Add(volume(corev1.VolumeReleased)))
		do(store.Add(volume("")))
		want("saved after it was seen", volume(corev1.VolumeReleased))

		do(informer.GetStore().Delete(volume("")))
		do(store.Add(volume("")))
		time.Sleep(savedFor) // of the bubble's clock
		want("saved, and never seen", nil)

		if err := store.Add("no volume"); err == nil {
			t.Error("no error for what has no name")
		}
	})
}
