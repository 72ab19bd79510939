// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2/ktesting"
)

// TestSavedVolumeHidesNoNewerOne has the library add a volume that it saved before and
// after the informer sees it.
func TestSavedVolumeHidesNoNewerOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		volume := func(phase corev1.PersistentVolumePhase) *corev1.PersistentVolume {
			return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv"}, Status: corev1.PersistentVolumeStatus{Phase: phase}}
		}
		informer := informers.NewSharedInformerFactory(fake.NewClientset(), 0).Core().V1().PersistentVolumes().Informer()
		store := ownVolumes{lateInformer{informer, nil}, nil}.GetStore()
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

// TestDeletedByForce: to delete a volume that is gone is no error, but to be refused is one.
func TestDeletedByForce(t *testing.T) {
	server := fake.NewClientset()
	volumes := quietClient{server}.CoreV1().PersistentVolumes()
	if err := volumes.Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
		t.Errorf("a volume that is gone: got %v", err)
	}
	server.PrependReactor("delete", "persistentvolumes", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(corev1.Resource("persistentvolumes"), "there", nil)
	})
	if err := volumes.Delete(t.Context(), "there", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a volume that must not be deleted: got %v", err)
	}
}

// TestQuietClient has a recorder, made as the library makes its own, tell of three
// attempts, the last of which succeeds.
func TestQuietClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := fake.NewClientset()
		_, ctx := ktesting.NewTestContext(t)
		broadcaster := record.NewBroadcaster(record.WithContext(ctx))
		broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{
			Interface: quietClient{server}.CoreV1().Events(metav1.NamespaceAll),
		})
		recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "ceph.com/rbd"})
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "a", UID: "1"}}
		for _, event := range []struct{ kind, reason, message string }{
			{corev1.EventTypeNormal, "Provisioning", "as always"},
			{corev1.EventTypeWarning, "ProvisioningFailed", "as always"},
			{corev1.EventTypeNormal, "Provisioning", "as always"},
			{corev1.EventTypeWarning, "ProvisioningFailed", "as always"},
			{corev1.EventTypeWarning, "VolumeResizeFailed", `cannot be fulfilled on "a": the object has been modified; please try again`},
			{corev1.EventTypeNormal, "Provisioning", "as always"},
			{corev1.EventTypeNormal, "ProvisioningSucceeded", "as always"},
		} {
			recorder.Event(claim, event.kind, event.reason, event.message)
			synctest.Wait()
			time.Sleep(time.Millisecond) // of the bubble's clock: an event's name is its time
		}
		broadcaster.Shutdown()
		synctest.Wait()
		if n := len(server.Actions()); n != 3 {
			t.Errorf("%d requests were made, want one for each event that is no noise: %v", n, server.Actions())
		}
		events, err := server.CoreV1().Events("apps").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int32{}
		for _, event := range events.Items {
			got[event.Reason] = event.Count
		}
		if diff := cmp.Diff(map[string]int32{"ProvisioningFailed": 2, "ProvisioningSucceeded": 1}, got); diff != "" {
			t.Errorf("the claim's events, by how often they were counted (-want +got):\n%s", diff)
		}
	})
}
