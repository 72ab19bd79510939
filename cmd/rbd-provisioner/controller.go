// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

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

// controllerConfig has what newController needs.
type controllerConfig struct {
	options *options
	// clusterUID is empty where we may not read it.
	clusterUID string
	client     kubernetes.Interface
	// informers are not started yet.
	informers informers.SharedInformerFactory
	access    *access.Access
	nodes     provisioner.Nodes
	// guard counts the operations of all parts of the controller.
	guard    *lease.Guard
	registry prometheus.Registerer
}

// controller holds the parts that work while this replica leads.
type controller struct {
	controllerConfig
	provisioner *provisioner.Provisioner
	// loop is the library's; background are all others. Each of these runs until its
	// context ends.
	loop       *loop
	background []func(context.Context)
	events     record.EventBroadcaster
}

// newController connects the parts that work while this replica leads, and requests the
// caches that they need.
func newController(ctx context.Context, c controllerConfig) (*controller, error) {
	// Operations in flight still send events after ctx has ended.
	events := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	events.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: c.client.CoreV1().Events("")})
	recorder := events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: c.options.provisionerName})

	jobs, err := newJobs(c, recorder)
	if err != nil {
		return nil, err
	}
	sized := func(claim runtime.Object, size int64) {
		if limit := c.options.warnVolumeSize; limit.Sign() > 0 && limit.CmpInt64(size) < 0 {
			recorder.Eventf(claim, corev1.EventTypeWarning, "LargeVolume", "the volume has %s, which is above %s (-warn-volume-size): if that is a mistake, "+
				"delete the claim, since volumes never shrink", resource.NewQuantity(size, resource.BinarySI), limit.String())
		}
	}
	p, err := newProvisioner(ctx, c, jobs, recorder, sized)
	if err != nil {
		return nil, err
	}
	made := &controller{controllerConfig: c, provisioner: p, events: events}
	made.background = []func(context.Context){jobs.trash.Run, jobs.flatten.Run, jobs.pools.Run, p.RunByHand}
	keeper := ownership.Keeper{Identity: c.options.identity, Cluster: c.clusterUID}
	volumes := access.Volumes{Access: c.access, Classes: c.informers.Storage().V1().StorageClasses().Lister(), Provisioner: c.options.provisionerName}
	if c.options.expansion {
		grow, err := newExpansion(c, keeper, volumes, sized)
		if err != nil {
			return nil, err
		}
		made.background = append(made.background, grow)
	}
	attach, err := newAttachment(c)
	if err != nil {
		return nil, err
	}
	made.background = append(made.background, attach)
	// A cluster that does not know its own UID can mark no image as its own.
	if c.clusterUID != "" {
		own, err := ownership.NewLoop(ownership.Config{
			Keeper: keeper, Volumes: volumes, Client: c.client.CoreV1(), Cache: c.informers.Core().V1().PersistentVolumes(),
			Events: recorder, Lease: c.guard,
		})
		if err != nil {
			return nil, err
		}
		made.background = append(made.background, own.Run)
	}
	made.background = append(made.background, made.advise)
	made.loop = made.newLoop(ctx)
	return made, nil
}

// newProvisioner returns our provisioner. The cache of volumes tells it of each volume,
// and of all of them at each resync.
func newProvisioner(ctx context.Context, c controllerConfig, jobs *jobs, events record.EventRecorder, sized func(runtime.Object, int64)) (*provisioner.Provisioner, error) {
	core := c.informers.Core().V1()
	p, err := provisioner.New(provisioner.Config{
		Name: c.options.provisionerName, Identity: c.options.identity, ClusterUID: c.clusterUID,
		UsePVName: c.options.usePVName, MaxCloneDepth: c.options.maxCloneDepth,
		Claims: c.client.CoreV1(), ClaimLister: core.PersistentVolumeClaims().Lister(),
		Volumes: c.client.CoreV1(), VolumeLister: core.PersistentVolumes().Lister(),
		VolumeIndex: index.Volumes{Cache: core.PersistentVolumes().Informer().GetIndexer()},
		Classes:     c.informers.Storage().V1().StorageClasses().Lister(),
		Access:      c.access, Lease: c.guard,
		Journal: jobs.journal, Trash: jobs.trash, Flattener: jobs.flatten, Activity: jobs.activity,
		Nodes: c.nodes, Events: events, Sized: sized,
	})
	if err != nil {
		return nil, err
	}
	_, err = core.PersistentVolumes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { p.Seen(nil, obj.(*corev1.PersistentVolume)) },
		UpdateFunc: func(before, obj any) { p.Seen(before.(*corev1.PersistentVolume), obj.(*corev1.PersistentVolume)) },
		DeleteFunc: func(obj any) { p.Gone(ctx, obj) },
	})
	return p, err
}

// run works on claims and volumes until ctx ends, and then until no operation is in
// flight. It returns an error if an informer has ended or draining timed out. Call it
// once, when this replica leads: the caches may already be filled.
func (c *controller) run(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	logger.Info("Leading")
	defer c.events.Shutdown()
	var background sync.WaitGroup
	for _, loop := range c.background {
		background.Go(func() { loop(ctx) })
	}
	if err := c.loop.Run(ctx); err != nil {
		return err
	}

	// An operation makes several calls, but each call in flight ends by then.
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.options.commandTimeout+drainGrace)
	defer cancel()
	if err := c.guard.Drain(drain); err != nil {
		return err
	}
	// They have no operation in flight any more, so they end at once.
	background.Wait()
	return nil
}
