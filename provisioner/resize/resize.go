// SPDX-License-Identifier: Apache-2.0

// Package resize grows the image and the PersistentVolume of a claim that asks
// for more than it has. external-resizer decides when, and tells the claim; how
// Ceph is reached is package access's. The file system is grown by kubelet.
package resize

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kubernetes-csi/external-resizer/pkg/controller"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/ownership"
)

var (
	// errNotLeading is about a replica that was halted for longer than its
	// lease. The claim is that of another one, or of this one again.
	errNotLeading = errors.New("this replica did not renew its lease in time, and another one may lead: it does nothing more")
	errStopping   = errors.New("this replica is stopping: the next one goes on")
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

	// Leading reports whether this replica surely leads; it is asked before
	// each step that changes something. Nil means always.
	Leading func() bool
	// Resized is told how each attempt ended; nil for nobody.
	Resized func(error)
}

// Loop grows volumes. It is safe for concurrent use, but to be run once.
type Loop struct {
	config Config

	// mu guards draining, and that no operation begins once it is set.
	mu       sync.Mutex
	draining bool
	running  sync.WaitGroup
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
	return &Loop{config: c}, nil
}

// Run works on claims until ctx ends. What is under way then, Drain waits for.
//
// The controller is made only here: it queues each claim that it is told of, and
// a replica that does not lead would never take one off again.
func (l *Loop) Run(ctx context.Context) {
	c := l.config
	base := context.WithoutCancel(ctx)
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
			context: func() context.Context { return base },
		},
		fencedClient{c.Client, l},
		c.ResyncPeriod,
		c.Factory,
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](c.BackoffStart, c.BackoffCap),
		handleVolumeInUseError,
		c.BackoffCap,
	).Run(c.Workers, ctx)
	klog.FromContext(ctx).V(2).Info("No more volumes are grown")
}

// Drain lets nothing begin any more, neither calls to Ceph nor changes in
// Kubernetes, and waits for those that run, or until ctx ends. Call it before the
// lease is given up. What it cut off between the image and the claim, the next
// leader finds and ends.
func (l *Loop) Drain(ctx context.Context) error {
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()

	done := make(chan struct{})
	go func() {
		l.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for volumes that grow: %w", ctx.Err())
	}
}

// begin counts an operation in, and returns what counts it out again.
func (l *Loop) begin() (end func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining {
		return nil, errStopping
	}
	if !l.leading() {
		return nil, errNotLeading
	}
	l.running.Add(1)
	return l.running.Done, nil
}

func (l *Loop) leading() bool { return l.config.Leading == nil || l.config.Leading() }
