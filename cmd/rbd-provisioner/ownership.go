// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/ownership"
)

// newOwnership returns the loop that makes images name the cluster they belong to, or
// nil for a cluster that does not know its own UID.
func newOwnership(c controllerConfig, keeper ownership.Keeper, volumes access.Volumes, events record.EventRecorder) (*ownership.Loop, error) {
	if keeper.Cluster == "" {
		return nil, nil
	}
	cached := c.informers.Core().V1().PersistentVolumes()
	return ownership.NewLoop(ownership.Config{
		Keeper:   keeper,
		Volumes:  volumes,
		Client:   c.client.CoreV1(),
		Informer: cached.Informer(),
		Lister:   cached.Lister(),
		Events:   events,
		Lease:    c.guard,
	})
}

// runOwnership runs the loop, if there is one, until ctx ends.
func runOwnership(ctx context.Context, loop *ownership.Loop) {
	if loop == nil {
		return
	}
	if err := loop.Run(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "Images of earlier versions are not marked, and none is taken over")
	}
}
