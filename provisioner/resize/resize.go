// SPDX-License-Identifier: Apache-2.0

// Package resize grows the image and the PersistentVolume of a claim that requests more
// than it has. external-resizer decides when, and updates the claim; package access
// reaches Ceph; kubelet grows the file system.
package resize

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kubernetes-csi/external-resizer/pkg/controller"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/ownership"
)

// Config has what New needs. Every field is required.
type Config struct {
	// Keeper decides which images may be grown; the loop leaves volumes of another
	// identity alone. Its Cluster may be empty.
	Keeper ownership.Keeper
	// Volumes opens pools, and names the provisioner whose volumes the loop grows.
	Volumes access.Volumes

	Client kubernetes.Interface
	// Factory has the caches of claims and volumes. Start them before Run.
	Factory informers.SharedInformerFactory
	// ResyncPeriod is how often the loop looks at all claims again.
	ResyncPeriod time.Duration
	// Workers is how many claims the loop works on at a time.
	Workers int
	// BackoffStart and BackoffCap bound the time before a failed claim is retried.
	BackoffStart, BackoffCap time.Duration

	// Lease guards what this replica does, and counts its operations: calls to Ceph and
	// changes in Kubernetes. Drain it before giving the lease back. If that cuts a resize
	// off between the image and the claim, the next leader completes it.
	Lease *lease.Guard
	// Resized is called with the result of each attempt.
	Resized func(error)
	// Sized is called with the new size of each image that was grown.
	Sized func(claim runtime.Object, sizeBytes int64)
}

// Loop grows volumes. It is safe for concurrent use, but run it only once.
type Loop struct {
	config Config
	client kubernetes.Interface // for all changes
	cached coreinformers.Interface
}

// New returns a Loop, or an error that names what c lacks.
func New(c Config) (*Loop, error) {
	v := c.Volumes
	if c.Keeper.Identity == "" || v.Access == nil || v.Classes == nil || v.Provisioner == "" || c.Client == nil || c.Factory == nil || c.Resized == nil || c.Sized == nil {
		return nil, errors.New("resize: Keeper, Volumes, Client, Factory, Resized and Sized are required")
	}
	if c.Workers < 1 || c.BackoffStart <= 0 || c.BackoffCap < c.BackoffStart || c.ResyncPeriod <= 0 || c.Lease == nil {
		return nil, errors.New("resize: Workers, BackoffStart, BackoffCap, ResyncPeriod and Lease are required")
	}
	return &Loop{config: c, client: fencedClient{c.Client, c.Lease}, cached: c.Factory.Core().V1()}, nil
}

// Run works on claims until ctx ends. Draining Config.Lease waits for operations in flight.
//
// Run, not New, makes the controller, which queues every claim that it hears of: a replica
// that does not lead would never take one off the queue.
func (l *Loop) Run(ctx context.Context) {
	c := l.config
	var clones sync.WaitGroup
	defer clones.Wait()
	clones.Go(func() { l.growFileSystems(ctx) })
	// Handling drivers that can't grow volumes in use takes a cache of Pods; images can
	// grow at any time.
	const handleVolumeInUseError = false
	controller.NewResizeController(
		c.Volumes.Provisioner,
		&resizer{l, func() context.Context { return ctx }},
		l.client,
		c.ResyncPeriod,
		c.Factory,
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](c.BackoffStart, c.BackoffCap),
		handleVolumeInUseError,
		c.BackoffCap,
	).Run(c.Workers, ctx)
	klog.FromContext(ctx).V(2).Info("No more volumes are grown")
}
