// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/utils/ptr"
)

// quick makes elections short, so that tests need not wait.
func quick() *options {
	return &options{
		provisionerName: "ceph.com/rbd", leaseNamespace: "kube-system",
		leaseDuration: time.Second, renewDeadline: 500 * time.Millisecond, retryPeriod: 50 * time.Millisecond,
	}
}

// holder is who has the lease, or empty.
func holder(t *testing.T, client *fake.Clientset) string {
	t.Helper()
	lease, err := client.CoordinationV1().Leases("kube-system").Get(t.Context(), "ceph.com-rbd", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ptr.Deref(lease.Spec.HolderIdentity, "")
}

func TestLeadGivesTheLeaseBack(t *testing.T) {
	for _, test := range []struct {
		name     string
		workErr  error
		wantKept bool
	}{
		{"all work is done", nil, false},
		{"operations are under way: it expires by itself", errors.New("not all ended"), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := fake.NewClientset()
			ctx, stop := context.WithCancel(t.Context())
			var heldWhileStopping string
			err := lead(ctx, quick(), client, leaderelection.NewLeaderHealthzAdaptor(0), &tenure{length: time.Second}, func(working context.Context) error {
				stop()
				<-working.Done()
				heldWhileStopping = holder(t, client)
				return test.workErr
			})
			if err != nil {
				t.Fatal(err)
			}
			if heldWhileStopping == "" {
				t.Error("the lease was given back before the work was done")
			}
			if kept := holder(t, client) != ""; kept != test.wantKept {
				t.Errorf("the lease was kept: %v, want %v", kept, test.wantKept)
			}
		})
	}
}

func TestLeadWaitsBehindAnother(t *testing.T) {
	client := fake.NewClientset(&coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "ceph.com-rbd"},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: ptr.To("another"), LeaseDurationSeconds: ptr.To[int32](3600),
			AcquireTime: ptr.To(metav1.NowMicro()), RenewTime: ptr.To(metav1.NowMicro()),
		},
	})
	ctx, stop := context.WithCancel(t.Context())
	var asked atomic.Int32
	client.PrependReactor("get", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
		if asked.Add(1) == 3 {
			stop()
		}
		return false, nil, nil
	})
	err := lead(ctx, quick(), client, leaderelection.NewLeaderHealthzAdaptor(0), &tenure{length: time.Second}, func(context.Context) error {
		t.Error("it works without the lease")
		return nil
	})
	if err != nil || holder(t, client) != "another" {
		t.Errorf("got %v, the lease is that of %q", err, holder(t, client))
	}
}

// A lease that can't be renewed: work is told to end, the caller to exit, and
// nothing waits for the work. Until then /healthz has seen it.
func TestLeadLosesTheLease(t *testing.T) {
	client := fake.NewClientset()
	var broken atomic.Bool
	client.PrependReactor("update", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
		return broken.Load(), nil, errors.New("no answer")
	})
	watchdog := leaderelection.NewLeaderHealthzAdaptor(0)
	if err := watchdog.Check(nil); err != nil {
		t.Errorf("before it leads: %v", err)
	}
	told, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	err := lead(t.Context(), quick(), client, watchdog, &tenure{length: time.Second}, func(working context.Context) error {
		broken.Store(true)
		<-working.Done()
		close(told)
		<-release
		return nil
	})
	if !errors.Is(err, errLeaseLost) {
		t.Errorf("got %v, want %v", err, errLeaseLost)
	}
	<-told
	if holder(t, client) == "" {
		t.Error("a lease that was lost was given back")
	}
	err = wait.PollUntilContextTimeout(t.Context(), 10*time.Millisecond, 10*time.Second, true, func(context.Context) (bool, error) {
		return watchdog.Check(nil) != nil, nil
	})
	if err != nil {
		t.Error("/healthz does not see a lease that has expired")
	}
}
