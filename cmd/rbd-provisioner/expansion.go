// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/ownership"
	"ceph.com/rbd-provisioner/provisioner/resize"
)

// maxExpansionWorkers is the most claims that grow at a time, as in external-resizer.
const maxExpansionWorkers = 10

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
	return waitForPermissions(ctx, client, []permission{expansionPermission}, func(missing string) {
		klog.FromContext(ctx).Info("Volumes do not grow, also where their class has allowVolumeExpansion: apply rbac/resize-*.yaml, "+
			"or give -expansion=false", "permission", missing)
	})
}
