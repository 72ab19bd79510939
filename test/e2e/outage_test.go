// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// silentMonitor accepts connections and says nothing.
func silentMonitor(t *testing.T) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			defer func() { _ = conn.Close() }()
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		<-ended
	})
	return listener.Addr().String()
}

// Claims of a healthy cluster are served while two other clusters are down, for which far
// more claims wait than there are workers. Each worker waits for 5 s: to try all claims
// once would take 100 s.
func TestOutageOfOneClass(t *testing.T) {
	t.Parallel()
	const name = "example.com/outage"
	// Before the fixture, because the fixture's end needs it.
	start(t, []string{"PROVISIONER_NAME=" + name}, "-leader-election=false", "-worker-threads=4")
	f := newFixture(t)
	class := func(suffix, monitors string) *storagev1.StorageClass {
		return f.class(suffix, func(c *storagev1.StorageClass) {
			c.Provisioner = name
			c.Parameters["monitors"] = monitors
		})
	}
	silent, dead := class("silent", silentMonitor(t)), class("dead", "127.0.0.1:1")
	var waiting, healthy []*corev1.PersistentVolumeClaim
	for i := range 40 {
		waiting = append(waiting, f.claim(fmt.Sprintf("silent-%d", i), silent, nil),
			f.claim(fmt.Sprintf("dead-%d", i), dead, nil))
	}
	good := class("good", rig.Ceph.MonitorV1)
	for i := range 10 {
		healthy = append(healthy, f.claim(fmt.Sprintf("good-%d", i), good, nil))
	}
	for _, claim := range healthy {
		f.bound(claim)
	}

	// Few of the others can have been waited for by then.
	events, err := rig.Kube.Client.CoreV1().Events(f.name).List(t.Context(), metav1.ListOptions{})
	f.must(err)
	waitedFor := map[string]bool{}
	for _, e := range events.Items {
		if strings.Contains(e.Message, "no monitor answered") && !strings.Contains(e.Message, "no answer lately") {
			waitedFor[e.InvolvedObject.Name] = true
		}
	}
	t.Logf("%d of %d claims were waited for", len(waitedFor), len(waiting))
	if len(waitedFor) > len(waiting)/2 {
		t.Errorf("%d of %d claims were waited for before those of a healthy cluster were bound", len(waitedFor), len(waiting))
	}
	// All of them have an event that says why.
	for _, claim := range waiting {
		f.eventually(func(ctx context.Context) error {
			if events := f.events(ctx, claim.UID); !strings.Contains(events, "no monitor answered") {
				return fmt.Errorf("claim %s is not told: %s", claim.Name, events)
			}
			return nil
		})
	}
}
