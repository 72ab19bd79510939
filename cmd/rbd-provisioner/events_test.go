// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2/ktesting"
)

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
		for _, event := range []struct{ kind, reason string }{
			{corev1.EventTypeNormal, reasonProvisioning},
			{corev1.EventTypeWarning, "ProvisioningFailed"},
			{corev1.EventTypeNormal, reasonProvisioning},
			{corev1.EventTypeWarning, "ProvisioningFailed"},
			{corev1.EventTypeNormal, reasonProvisioning},
			{corev1.EventTypeNormal, "ProvisioningSucceeded"},
		} {
			recorder.Event(claim, event.kind, event.reason, "as always")
			synctest.Wait()
			time.Sleep(time.Millisecond) // of the bubble's clock: an event's name is its time
		}
		broadcaster.Shutdown()
		synctest.Wait()
		if n := len(server.Actions()); n != 3 {
			t.Errorf("%d requests were made, want one for each event but %s: %v", n, reasonProvisioning, server.Actions())
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
