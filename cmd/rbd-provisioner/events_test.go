// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2/ktesting"
)

// libraryEvent is one of the library about a claim.
func libraryEvent(claim, reason string) *corev1.Event {
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: "apps", Name: claim + "." + strings.ToLower(reason)},
		InvolvedObject: corev1.ObjectReference{Namespace: "apps", Name: claim, UID: types.UID(claim)},
		Reason:         reason, Type: corev1.EventTypeNormal, Count: 1,
	}
}

// TestBriefClient is about what a claim is told, and in which order.
func TestBriefClient(t *testing.T) {
	const soon, late = beginningDelay / 2, 2 * beginningDelay
	const savedVolume = "the volume is saved"
	type step struct {
		claim, reason string
		after         time.Duration // since the one before
	}
	for _, test := range []struct {
		name  string
		steps []step
		want  []string
	}{
		{"it is made at once", []step{{"a", reasonProvisioning, 0}, {"a", reasonSucceeded, soon}}, []string{"a.provisioningsucceeded"}},
		{"it is made at once, of which the recorder tells later",
			[]step{{"a", reasonProvisioning, 0}, {"a", savedVolume, soon}, {"a", reasonSucceeded, late}},
			[]string{"a.provisioningsucceeded"}},
		{"it takes its time", []step{{"a", reasonProvisioning, 0}, {"a", reasonSucceeded, late}},
			[]string{"a.provisioning", "a.provisioningsucceeded"}},
		{"it never ends", []step{{"a", reasonProvisioning, 0}}, []string{"a.provisioning"}},
		{"it fails", []step{{"a", reasonProvisioning, 0}, {"a", "ProvisioningFailed", soon}},
			[]string{"a.provisioning", "a.provisioningfailed"}},
		{"it fails at once, and then succeeds",
			[]step{{"a", reasonProvisioning, 0}, {"a", "ProvisioningFailed", 0}, {"a", reasonSucceeded, soon}},
			[]string{"a.provisioning", "a.provisioningfailed", "a.provisioningsucceeded"}},
		{"two at a time", []step{{"a", reasonProvisioning, 0}, {"b", reasonProvisioning, 0}, {"a", reasonSucceeded, soon}},
			[]string{"a.provisioningsucceeded", "b.provisioning"}},
		{"of another kind", []step{{"a", "VolumeFailedDelete", 0}}, []string{"a.volumefaileddelete"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := fake.NewClientset()
				logger, _ := ktesting.NewTestContext(t)
				client := newBriefClient(server, logger)
				sink := &corev1client.EventSinkImpl{Interface: client.CoreV1().Events(metav1.NamespaceAll)}
				for _, s := range test.steps {
					time.Sleep(s.after) // of the bubble's clock
					if s.reason == savedVolume {
						client.saved(&corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{
							ClaimRef: &corev1.ObjectReference{UID: types.UID(s.claim)},
						}})
						continue
					}
					given := libraryEvent(s.claim, s.reason)
					got, err := sink.Create(given)
					if err != nil || got.Name != given.Name {
						t.Errorf("%s: got %v, %v", given.Name, got, err)
					}
				}
				time.Sleep(late)
				synctest.Wait()
				var sent []string
				for _, action := range server.Actions() {
					if create, ok := action.(clienttesting.CreateAction); ok {
						sent = append(sent, create.GetObject().(*corev1.Event).Name)
					}
				}
				if diff := cmp.Diff(test.want, sent); diff != "" {
					t.Errorf("what was sent (-want +got):\n%s", diff)
				}
				if len(client.held) != 0 {
					t.Errorf("%d events are still held", len(client.held))
				}
			})
		})
	}
}

// TestBriefClientAgain has a recorder tell of a second attempt: it takes what was
// dropped for sent, and asks the server to count it once more.
func TestBriefClientAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := fake.NewClientset()
		logger, ctx := ktesting.NewTestContext(t)
		client := newBriefClient(server, logger)
		broadcaster := record.NewBroadcaster(record.WithContext(ctx))
		broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events(metav1.NamespaceAll)})
		recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "ceph.com/rbd"})
		claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "a", UID: "1"}}
		for _, reason := range []string{reasonProvisioning, reasonSucceeded, reasonProvisioning} {
			recorder.Event(claim, corev1.EventTypeNormal, reason, "as always")
			synctest.Wait()
			time.Sleep(time.Millisecond) // of the bubble's clock: an event's name is its time
		}
		time.Sleep(2 * beginningDelay) // of the bubble's clock
		broadcaster.Shutdown()
		synctest.Wait()
		events, err := server.CoreV1().Events("apps").List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int32{}
		for _, event := range events.Items {
			got[event.Reason] = event.Count
		}
		if diff := cmp.Diff(map[string]int32{reasonProvisioning: 2, reasonSucceeded: 1}, got); diff != "" {
			t.Errorf("the claim's events (-want +got):\n%s", diff)
		}
	})
}

// TestBriefClientRefused: that an event can't be sent is in the log.
func TestBriefClientRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := fake.NewClientset()
		server.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("the namespace is going")
		})
		logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.BufferLogs(true)))
		client := newBriefClient(server, logger)
		events := client.CoreV1().Events(metav1.NamespaceAll)
		if _, err := events.CreateWithEventNamespaceWithContext(t.Context(), libraryEvent("a", reasonProvisioning)); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * beginningDelay) // of the bubble's clock
		synctest.Wait()
		log := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
		if !strings.Contains(log, "the namespace is going") || !strings.Contains(log, `PVC="apps/a"`) {
			t.Errorf("the log says %q", log)
		}
	})
}
