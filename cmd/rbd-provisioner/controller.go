// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
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
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/ownership"
)

// Backoff of a claim or volume that fails: an administrator who fixes the cause should
// not wait long, and a lasting fault should not make noise. The cap is how long claims
// may wait after the end of an outage; one that fails meanwhile costs three or four
// requests to the API server a minute.
const (
	backoffStart = time.Second
	backoffCap   = time.Minute
)

// drainGrace is how long operations in flight get on a stop, beyond the deadline of a
// Ceph call. They take milliseconds, unless Ceph does not answer.
const drainGrace = 2 * time.Second

// controllerConfig has what newController needs. All fields are required unless they
// say otherwise.
type controllerConfig struct {
	options *options
	// clusterUID is empty where we may not read it.
	clusterUID string
	client     kubernetes.Interface
	// informers are not started yet.
	informers informers.SharedInformerFactory
	access    *access.Access
	// guard counts the operations of all parts of the controller.
	guard    *lease.Guard
	registry prometheus.Registerer
}

// controller holds the parts that work while this replica leads.
type controller struct {
	config      controllerConfig
	provisioner *provisioner.Provisioner
	jobs        *jobs
	// expansion is nil when volumes are not to grow, ownership when this cluster has no
	// identity.
	expansion *expansion
	ownership *ownership.Loop
	events    record.EventBroadcaster
	// loop is the library's, metrics are its counters.
	loop    *loop
	metrics libmetrics.Metrics
}

// newController connects the parts that work while this replica leads, and requests the
// caches that they need.
func newController(ctx context.Context, c controllerConfig) (_ *controller, err error) {
	// Operations in flight still send events after ctx has ended.
	events := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	defer func() {
		if err != nil {
			events.Shutdown()
		}
	}()
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: c.client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: c.options.provisionerName})

	activity := new(lease.Activity)
	work, err := newJobs(c, activity, recorder)
	if err != nil {
		return nil, err
	}
	p, err := newProvisioner(c, work, activity, recorder)
	if err != nil {
		return nil, err
	}
	keeper := ownership.Keeper{Identity: c.options.identity, Cluster: c.clusterUID}
	volumes := access.Volumes{Access: c.access, Classes: c.informers.Storage().V1().StorageClasses().Lister(), Provisioner: c.options.provisionerName}
	grow, err := newExpansion(c, keeper, volumes)
	if err != nil {
		return nil, err
	}
	own, err := newOwnership(c, keeper, volumes, recorder)
	if err != nil {
		return nil, err
	}
	made := &controller{
		config:      c,
		provisioner: p,
		jobs:        work,
		expansion:   grow,
		ownership:   own,
		events:      events,
		metrics:     newLibraryMetrics(c.registry),
	}
	made.loop = made.newLoop(ctx)
	return made, nil
}

// newProvisioner returns our provisioner. The cache of volumes tells it of each volume.
func newProvisioner(c controllerConfig, work *jobs, activity *lease.Activity, events record.EventRecorder) (*provisioner.Provisioner, error) {
	core := c.informers.Core().V1()
	p, err := provisioner.New(provisioner.Config{
		Name:          c.options.provisionerName,
		Identity:      c.options.identity,
		UsePVName:     c.options.usePVName,
		ClusterUID:    c.clusterUID,
		Claims:        c.client.CoreV1(),
		ClaimLister:   core.PersistentVolumeClaims().Lister(),
		Volumes:       c.client.CoreV1(),
		VolumeLister:  core.PersistentVolumes().Lister(),
		VolumeIndex:   index.Volumes{Cache: core.PersistentVolumes().Informer().GetIndexer()},
		Classes:       c.informers.Storage().V1().StorageClasses().Lister(),
		Access:        c.access,
		Journal:       work.journal,
		Trash:         work.trash,
		Flattener:     work.flatten,
		Events:        events,
		MaxCloneDepth: c.options.maxCloneDepth,
		Lease:         c.guard,
		Activity:      activity,
	})
	if err != nil {
		return nil, err
	}
	if err := onSeen(core.PersistentVolumes().Informer(), p.Seen); err != nil {
		return nil, err
	}
	return p, nil
}

// onSeen calls seen for each volume that the cache adds or updates, and for all of them
// at each resync.
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

// run works on claims and volumes until ctx ends, and then until no operation is in
// flight. It returns an error if an informer has ended or draining timed out. Call it
// once, when this replica leads: the caches may already be filled.
func (c *controller) run(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	logger.Info("Leading")
	defer c.events.Shutdown()
	var keeping sync.WaitGroup
	for _, loop := range c.jobs.loops() {
		keeping.Go(func() { loop(ctx) })
	}
	keeping.Go(func() { runOwnership(ctx, c.ownership) })
	if c.expansion != nil {
		keeping.Go(func() { c.expansion.run(ctx) })
	}
	if err := c.loop.Run(ctx); err != nil {
		return err
	}

	// An operation makes several calls, but each call in flight ends by then.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.config.options.commandTimeout+drainGrace)
	defer cancel()
	if err := c.config.guard.Drain(drain); err != nil {
		return err
	}
	// They have no operation in flight any more, so they end at once.
	keeping.Wait()
	return nil
}
