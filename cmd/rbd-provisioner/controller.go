// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"
	libmetrics "sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller/metrics"

	"ceph.com/rbd-provisioner/provisioner"
	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/ownership"
)

// Backoff of a claim or volume that fails: somebody who mends the cause should
// not wait long, and what stays broken should not make noise. The cap is how long
// claims may wait after the end of an outage; one that fails meanwhile costs
// three or four requests to the API server a minute.
const (
	backoffStart = time.Second
	backoffCap   = time.Minute
)

// drainGrace is what operations under way get on a stop beyond the deadline of a
// Ceph call. They take milliseconds, unless Ceph does not answer.
const drainGrace = 2 * time.Second

// controller is our provisioner, and what the library's control loop around it is made
// from.
type controller struct {
	options      *options
	client       kubernetes.Interface
	informers    informers.SharedInformerFactory
	metrics      libmetrics.Metrics
	drainTimeout time.Duration
	provisioner  *provisioner.Provisioner
	// expansion is nil when volumes are not to be grown, ownership when this cluster
	// has no identity.
	expansion *expansion
	ownership *ownership.Loop
	events    record.EventBroadcaster
}

// newController connects all that works while this replica leads, and has the caches
// made that it needs.
// clusterUID may be empty.
func newController(ctx context.Context, o *options, clusterUID string, client kubernetes.Interface, factory informers.SharedInformerFactory, open *access.Access, leading func() bool, registry prometheus.Registerer) (*controller, error) {
	// Events of what is under way are still sent when ctx has ended.
	events := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: o.provisionerName})
	p, err := provisioner.New(provisioner.Config{
		Name:         o.provisionerName,
		Identity:     o.identity,
		UsePVName:    o.usePVName,
		ClusterUID:   clusterUID,
		Claims:       client.CoreV1(),
		ClaimLister:  factory.Core().V1().PersistentVolumeClaims().Lister(),
		Classes:      factory.Storage().V1().StorageClasses().Lister(),
		Access:       open,
		Leading:      leading,
		Events:       recorder,
		Volumes:      client.CoreV1(),
		VolumeLister: factory.Core().V1().PersistentVolumes().Lister(),
		VolumeIndex:  factory.Core().V1().PersistentVolumes().Informer().GetIndexer(),
		Recovered:    newRecoveredCounter(registry),
		Purged:       newPurgedCounter(registry),

		MaxCloneDepth: o.maxCloneDepth,
		Flattened:     newFlattenedCounter(registry),
	})
	keeper := ownership.Keeper{Identity: o.identity, Cluster: clusterUID}
	volumes := access.Volumes{Access: open, Classes: factory.Storage().V1().StorageClasses().Lister(), Provisioner: o.provisionerName}
	var grow *expansion
	if err == nil && o.expansion {
		grow, err = newExpansion(o, keeper, volumes, client, factory, leading, registry)
	}
	var own *ownership.Loop
	if err == nil {
		own, err = newOwnership(keeper, volumes, client, factory, recorder, leading)
	}
	if err == nil {
		err = onSeen(factory.Core().V1().PersistentVolumes().Informer(), p.Seen)
	}
	if err != nil {
		events.Shutdown()
		return nil, err
	}
	registerTrash(registry, p.Trash)
	registerClones(registry, p.Unflattened)
	metrics := libmetrics.New("controller")
	registry.MustRegister(
		metrics.PersistentVolumeClaimProvisionTotal,
		metrics.PersistentVolumeClaimProvisionFailedTotal,
		metrics.PersistentVolumeClaimProvisionDurationSeconds,
		metrics.PersistentVolumeDeleteTotal,
		metrics.PersistentVolumeDeleteFailedTotal,
		metrics.PersistentVolumeDeleteDurationSeconds,
	)
	return &controller{
		options:   o,
		client:    client,
		informers: factory,
		metrics:   metrics,
		// An operation makes several calls, but each begun one ends by then.
		drainTimeout: o.commandTimeout + drainGrace,
		provisioner:  p,
		expansion:    grow,
		ownership:    own,
		events:       events,
	}, nil
}

// newLoop makes the library's control loop. Its defaults give up on claims, delete
// images whose PersistentVolume could not be saved, and forget claims whose node is
// gone; each setting here is against one of them.
//
// It is made only when this replica leads: from then on its handlers put each claim and
// volume of the cluster into work queues, and while nobody works, what is deleted
// meanwhile stays there.
func (c *controller) newLoop(ctx context.Context) *libcontroller.ProvisionController {
	core := c.informers.Core().V1()
	return libcontroller.NewProvisionController(klog.FromContext(ctx), quietClient{c.client}, c.options.provisionerName, c.provisioner,
		// We hold the lease, to give it back on a stop.
		libcontroller.LeaderElection(false),
		libcontroller.ClaimsInformer(core.PersistentVolumeClaims().Informer()),
		libcontroller.VolumesInformer(ownVolumes{core.PersistentVolumes().Informer(), c.provisioner.Owns}),
		libcontroller.ClassesInformer(c.informers.Storage().V1().StorageClasses().Informer()),
		libcontroller.NodesLister(anyNode{}),
		libcontroller.Threadiness(c.options.workers),
		libcontroller.FailedProvisionThreshold(0),
		libcontroller.FailedDeleteThreshold(0),
		libcontroller.RateLimiter(newBackoff()),
		// Keeps saving for ever; the alternative deletes the image.
		libcontroller.CreateProvisionedPVLimiter(newBackoff()),
		// A volume deleted before its claim would leak its image.
		libcontroller.AddFinalizer(true),
		libcontroller.MetricsInstance(c.metrics),
	)
}

func newBackoff() workqueue.RateLimiter { //nolint:staticcheck // the library takes no typed one
	return workqueue.NewItemExponentialFailureRateLimiter(backoffStart, backoffCap) //nolint:staticcheck // as above
}

// run works on claims and volumes until ctx ends, and then until what is under way is
// done. It returns an error if draining timed out. Call it once, when this replica
// leads: the caches may be filled by then.
func (c *controller) run(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	logger.Info("Leading")
	defer c.events.Shutdown()
	var keeping sync.WaitGroup
	keeping.Go(func() { c.provisioner.Keep(ctx) })
	keeping.Go(func() { runOwnership(ctx, c.ownership) })
	if c.expansion != nil {
		keeping.Go(func() { c.expansion.run(ctx) })
	}
	c.newLoop(ctx).Run(ctx)

	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.drainTimeout)
	defer cancel()
	// Both at once: each lets nothing begin any more before it waits.
	drained := make(chan error, 1)
	go func() { drained <- c.expansion.drain(drain) }()
	if err := errors.Join(c.provisioner.Drain(drain), <-drained); err != nil {
		return err
	}
	// Nothing of it is under way any more: it ends at once.
	keeping.Wait()
	return nil
}

// ownVolumes keeps the library from volumes of a provisioner with our name and
// another identity: it would put its finalizer on them, which nobody took off
// again.
type ownVolumes struct {
	cache.SharedIndexInformer
	owns func(*corev1.PersistentVolume) bool
}

// AddEventHandlerWithResyncPeriod is how the library subscribes.
func (v ownVolumes) AddEventHandlerWithResyncPeriod(handler cache.ResourceEventHandler, period time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return v.SharedIndexInformer.AddEventHandlerWithResyncPeriod(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			pv, ok := obj.(*corev1.PersistentVolume)
			// What stands for a deleted volume that was missed is only
			// forgotten.
			return !ok || v.owns(pv)
		},
		Handler: handler,
	}, period)
}

// anyNode is a NodeLister that knows every node. Images can be reached from any
// of them, so the node of a claim does not matter; and the library drops a claim
// whose node is gone, also when its image was made already. Asking nobody also
// needs no right to read nodes.
type anyNode struct{}

var _ corelisters.NodeLister = anyNode{}

// Get returns a Node of that name.
func (anyNode) Get(name string) (*corev1.Node, error) {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil
}

// List returns nothing; the library does not call it.
func (anyNode) List(labels.Selector) ([]*corev1.Node, error) { return nil, nil }
