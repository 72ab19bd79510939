// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/attach"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// maxAttachWorkers is the most volumes that are attached at a time, as in external-attacher.
const maxAttachWorkers = 10

// newAttachment returns a function that attaches volumes of the node plugin until its context
// ends, once that is allowed: the rights are newer than most installed rbac/, and where there
// is no node plugin nobody misses them.
func newAttachment(c controllerConfig) (func(context.Context), error) {
	loop, err := attach.New(attach.Config{
		Client: c.client, Volumes: c.informers.Core().V1().PersistentVolumes(),
		Workers: min(c.options.workers, maxAttachWorkers), ResyncPeriod: resyncPeriod,
		BackoffStart: backoffStart, BackoffCap: backoffCap, Lease: c.guard,
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		err := waitForPermissions(ctx, c.client.AuthorizationV1().SelfSubjectAccessReviews(), attachPermissions, func(missing string) {
			klog.FromContext(ctx).Info("Volumes of the node plugin are not attached, so Pods that use them wait: apply rbac/clusterrole.yaml",
				"driver", volume.CSIDriver, "permission", missing)
		})
		if err != nil {
			return // ctx has ended
		}
		loop.Run(ctx)
	}, nil
}
