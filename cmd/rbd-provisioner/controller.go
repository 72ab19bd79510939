// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
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
	return &controller{
		options:   o,
		client:    client,
		informers: factory,
		metrics:   newLibraryMetrics(registry),
		// An operation makes several calls, but each begun one ends by then.
		drainTimeout: o.commandTimeout + drainGrace,
		provisioner:  p,
		expansion:    grow,
		ownership:    own,
		events:       events,
	}, nil
}

// onSeen calls seen for each volume that a cache of volumes gets to know, and when the
// cache is gone through again.
func onSeen(volumes cache.SharedInformer, seen func(before, pv *corev1.PersistentVolume)) error {
	see := func(before *corev1.PersistentVolume, obj any) {
		if pv, ok := obj.(*corev1.PersistentVolume); ok {
			seen(before, pv)
		}
	}
	_, err := volumes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { see(nil, obj) },
		UpdateFunc: func(old, obj any) {
			before, _ := old.(*corev1.PersistentVolume)
			see(before, obj)
		},
	})
	return err
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
