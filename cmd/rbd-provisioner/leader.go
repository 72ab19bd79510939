// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// errLeaseLost ends the process: another replica may lead from now on, and only
// a process that is gone surely does nothing.
var errLeaseLost = errors.New("the lease was lost")

// leaseName is derived from the provisioner's name, like the lock of the retired
// provisioner.
func (o *options) leaseName() string {
	return strings.ReplaceAll(o.provisionerName, "/", "-")
}

// lead takes part in the election until ctx ends or the lease is lost, which is
// errLeaseLost. While it leads, work runs; its context ends when ctx does, or
// when the lease is lost. After the end of ctx the lease is renewed until work
// has returned and is given back then: two replicas never work at the same time.
func lead(ctx context.Context, o *options, client kubernetes.Interface, watchdog *leaderelection.HealthzAdaptor, work func(context.Context)) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	election, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: o.leaseName(),
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: o.leaseNamespace, Name: o.leaseName()},
			Client:    client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{
				// Two processes on one host must differ.
				Identity: host + "_" + string(uuid.NewUUID()),
			},
		},
		LeaseDuration:   o.leaseDuration,
		RenewDeadline:   o.renewDeadline,
		RetryPeriod:     o.retryPeriod,
		ReleaseOnCancel: true,
		WatchDog:        watchdog,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				working, cancel := context.WithCancel(leading)
				defer cancel()
				defer context.AfterFunc(ctx, cancel)()
				work(working)
				release()
			},
			// Run returns next, which says the same.
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	// A replica that does not lead has nothing to drain.
	defer context.AfterFunc(ctx, func() {
		if !elector.IsLeader() {
			release()
		}
	})()

	klog.FromContext(ctx).Info("Waiting for the lease", "lease", klog.KRef(o.leaseNamespace, o.leaseName()))
	elector.Run(election)
	if ctx.Err() == nil {
		return errLeaseLost
	}
	return nil
}
