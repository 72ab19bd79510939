// SPDX-License-Identifier: Apache-2.0

// Package resize grows the image and the PersistentVolume of a claim that asks
// for more than it has. external-resizer decides when, and tells the claim; how
// Ceph is reached is package access's. The file system is grown by kubelet.
package resize

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kubernetes-csi/external-resizer/pkg/controller"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/ownership"
)

// Config has what New needs. All are required, where they do not say otherwise.
type Config struct {
	// Keeper says whose images may be grown; volumes of another identity are left
	// alone. Its Cluster may be empty.
	Keeper ownership.Keeper
	// Volumes opens pools, and names the provisioner whose volumes are grown.
	Volumes access.Volumes

	Client kubernetes.Interface
	// Factory has the caches of claims and volumes. They are started before Run.
	Factory informers.SharedInformerFactory
	// ResyncPeriod is when all claims are looked at again, whatever was missed.
	ResyncPeriod time.Duration
	// Workers are how many claims are worked on at a time.
	Workers int
	// BackoffStart and BackoffCap bound the time after which a claim that
	// failed comes again.
	BackoffStart, BackoffCap time.Duration

	// Lease guards what this replica does, and counts its operations: calls to Ceph
	// and changes in Kubernetes. Drain it before the lease is given back. What that cuts
	// off between the image and the claim, the next leader finds and ends. Nil means
	// that there is no lease.
	Lease *lease.Guard
	// Resized is told how each attempt ended; nil for nobody.
	Resized func(error)
}

// Loop grows volumes. It is safe for concurrent use, but to be run once.
type Loop struct {
	config Config
}

// New returns a Loop, or an error that names what c lacks.
func New(c Config) (*Loop, error) {
	v := c.Volumes
	if c.Keeper.Identity == "" || v.Access == nil || v.Classes == nil || v.Provisioner == "" || c.Client == nil || c.Factory == nil {
		return nil, errors.New("resize: Keeper, Volumes, Client and Factory are required")
	}
	if c.Workers < 1 || c.BackoffStart <= 0 || c.BackoffCap < c.BackoffStart || c.ResyncPeriod <= 0 {
		return nil, errors.New("resize: Workers, BackoffStart, BackoffCap and ResyncPeriod are required")
	}
	if c.Lease == nil {
		c.Lease = lease.New(nil)
	}
	return &Loop{config: c}, nil
}

// Run works on claims until ctx ends. What is under way then, draining the lease's
// guard waits for.
//
// The controller is made only here: it queues each claim that it is told of, and
// a replica that does not lead would never take one off again.
func (l *Loop) Run(ctx context.Context) {
	c := l.config
	var clones sync.WaitGroup
	defer clones.Wait()
	clones.Go(func() {
		if err := newFileSystems(l).run(ctx); err != nil {
			klog.FromContext(ctx).Error(err, "The file systems of clones that are larger than their sources are not grown")
		}
	})
	// The features of volumes in use that can't be grown need Pods; images can
	// be grown at any time.
	const handleVolumeInUseError = false
	controller.NewResizeController(
		c.Volumes.Provisioner,
		&resizer{
			Loop:    l,
			claims:  c.Factory.Core().V1().PersistentVolumeClaims().Lister(),
			context: func() context.Context { return ctx },
		},
		fencedClient{c.Client, c.Lease},
		c.ResyncPeriod,
		c.Factory,
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](c.BackoffStart, c.BackoffCap),
		handleVolumeInUseError,
		c.BackoffCap,
	).Run(c.Workers, ctx)
	klog.FromContext(ctx).V(2).Info("No more volumes are grown")
}
