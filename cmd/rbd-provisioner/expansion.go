// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/ownership"
	"ceph.com/rbd-provisioner/provisioner/resize"
)

const (
	// maxExpansionWorkers is the most claims that grow at a time, as in external-resizer.
	maxExpansionWorkers = 10
	// expansionRetry is how often a leader asks whether it may grow volumes now.
	expansionRetry = 10 * time.Second
)

// newExpansion returns a function that grows volumes until its context ends, once that is
// allowed: its rights are a separate part of rbac/, which an administrator may leave out.
func newExpansion(c controllerConfig, keeper ownership.Keeper, volumes access.Volumes, sized func(runtime.Object, int64)) (func(context.Context), error) {
	loop, err := resize.New(resize.Config{
		Keeper: keeper, Volumes: volumes, Client: quietClient{c.client}, Factory: c.informers,
		Workers: min(c.options.workers, maxExpansionWorkers), ResyncPeriod: resyncPeriod,
		BackoffStart: backoffStart, BackoffCap: backoffCap,
		Lease: c.guard, Resized: newResizedCounter(c.registry), Sized: sized,
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		if err := waitForExpansion(ctx, c.client.AuthorizationV1().SelfSubjectAccessReviews()); err != nil {
			return // ctx has ended
		}
		loop.Run(ctx)
	}, nil
}

// waitForExpansion waits for the right to patch a claim's status, without which claims could
// not show how their expansion goes. It returns an error only when ctx ends.
func waitForExpansion(ctx context.Context, client authorizationclient.SelfSubjectAccessReviewInterface) error {
	logger := klog.FromContext(ctx)
	var logged sync.Once
	return wait.PollUntilContextCancel(ctx, expansionRetry, true, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
		defer cancel()
		verb := expansionPermission.verbs[0]
		allowed, err := expansionPermission.allowed(ctx, client, verb)
		if apierrors.IsForbidden(err) {
			return true, nil // requests will tell
		}
		if err == nil && !allowed {
			logged.Do(func() {
				logger.Info("Volumes do not grow, also where their class has allowVolumeExpansion: apply rbac/resize-*.yaml, "+
					"or give -expansion=false", "permission", expansionPermission.describe(verb))
			})
		}
		return err == nil && allowed, nil
	})
}
