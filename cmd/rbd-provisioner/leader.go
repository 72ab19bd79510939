// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

// errLeaseLost ends the process: another replica may lead from now on, and only a
// process that is gone surely does nothing.
var errLeaseLost = errors.New("the lease was lost")

// giveBackTimeout bounds giving the lease back; a lease that is not given back expires
// by itself.
const giveBackTimeout = 5 * time.Second

// leaseName derives the lease's name from the provisioner's, as the retired provisioner
// did for its lock.
func (o *options) leaseName() string {
	return strings.ToLower(strings.ReplaceAll(o.provisionerName, "/", "-"))
}

// lead takes part in the election until ctx ends, or the lease is lost, which is
// errLeaseLost. While this replica leads, which tenure tells, work runs, with a context that
// ends then. After the end of ctx, lead renews the lease until work has returned.
//
// It gives the lease back only when work returned without an error, which says that no
// operation is in flight: two replicas never work at the same time. librbd may then
// still be removing or flattening an image, which is safe to repeat. ReleaseOnCancel
// would also give back a lease that was lost, and delay the end of work for that.
func lead(ctx context.Context, o *options, client kubernetes.Interface, watchdog *leaderelection.HealthzAdaptor, tenure *tenure, work func(context.Context) error) error {
	logger := klog.FromContext(ctx)
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	election, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	lock := &watchedLock{tenure: tenure, lost: leave, Interface: &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: o.leaseNamespace, Name: o.leaseName()},
		Client:    client.CoordinationV1(),
		// Two processes on one host need different identities.
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + string(uuid.NewUUID())},
	}}
	worked := make(chan error, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name:          o.leaseName(),
		Lock:          lock,
		LeaseDuration: o.leaseDuration, RenewDeadline: o.renewDeadline, RetryPeriod: o.retryPeriod,
		WatchDog: watchdog,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(leading context.Context) {
				working, cancel := context.WithCancel(leading)
				defer cancel()
				defer context.AfterFunc(ctx, cancel)()
				worked <- work(working)
				leave()
			},
			// Run returns next, which says the same.
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	watchdog.SetLeaderElection(elector)
	// A replica that does not lead has nothing to wait for.
	defer context.AfterFunc(ctx, func() {
		if !elector.IsLeader() {
			leave()
		}
	})()

	logger.Info("Waiting for the lease", "lease", klog.KRef(o.leaseNamespace, o.leaseName()))
	elector.Run(election)
	if ctx.Err() == nil {
		return errLeaseLost
	}
	if !elector.IsLeader() {
		return nil
	}
	// It led, if only for the instant in which ctx ended.
	if err := <-worked; err != nil {
		logger.Info("Stopping with operations under way; the next leader continues them", "err", err)
		return nil
	}
	if err := giveBack(ctx, lock); err != nil {
		logger.Info("The lease was not given back and will expire", "err", err)
	}
	return nil
}

// giveBack lets another replica lead at once.
func giveBack(ctx context.Context, lock resourcelock.Interface) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveBackTimeout)
	defer cancel()
	record, _, err := lock.Get(ctx)
	if err != nil {
		return err
	}
	if record.HolderIdentity != lock.Identity() {
		return nil
	}
	now := metav1.Now()
	return lock.Update(ctx, resourcelock.LeaderElectionRecord{
		LeaseDurationSeconds: 1, LeaderTransitions: record.LeaderTransitions, AcquireTime: now, RenewTime: now,
	})
}
