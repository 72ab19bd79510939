// SPDX-License-Identifier: Apache-2.0

package main

// This file adapts sig-storage-lib-external-provisioner v10 to our promises. Each
// adapter names the release that makes it unnecessary, and the number of that change in
// kubernetes-sigs/sig-storage-lib-external-provisioner.

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// newLoop makes the library's control loop. By default, the library gives up on claims,
// deletes images whose PersistentVolume it could not save, and forgets claims whose
// node is gone; the settings here prevent that.
//
// Call it before this process uses client-go's Scheme for anything else: the library
// writes to that map, as v13.0 does, and who reads it meanwhile ends the process.
func (c *controller) newLoop(ctx context.Context) *loop {
	core := c.informers.Core().V1()
	l := new(loop)
	l.ProvisionController = libcontroller.NewProvisionController(klog.FromContext(ctx), quietClient{c.client}, c.options.provisionerName, &patient{Provisioner: c.provisioner, loop: l},
		// We hold the lease ourselves, to give it back on a stop.
		libcontroller.LeaderElection(false),
		libcontroller.ClaimsInformer(lateInformer{core.PersistentVolumeClaims().Informer(), l}),
		libcontroller.VolumesInformer(ownVolumes{lateInformer{core.PersistentVolumes().Informer(), l}, c.provisioner.Owns}),
		libcontroller.ClassesInformer(c.informers.Storage().V1().StorageClasses().Informer()),
		libcontroller.NodesLister(anyNode{}),
		libcontroller.Threadiness(c.options.workers),
		libcontroller.FailedProvisionThreshold(0),
		libcontroller.FailedDeleteThreshold(0),
		libcontroller.RateLimiter(newBackoff()),
		// Retries saving for ever; the alternative deletes the image.
		libcontroller.CreateProvisionedPVLimiter(newBackoff()),
		// A volume deleted before its claim would leak its image.
		libcontroller.AddFinalizer(true),
		libcontroller.MetricsInstance(newLibraryMetrics(c.registry)),
	)
	return l
}

// loop is the library's loop, whose handlers hear of claims and volumes only once it
// runs. They put each into work queues; on a standby, where no worker runs, deleted
// ones would stay there.
type loop struct {
	*libcontroller.ProvisionController
	// handlers are functions that add each handler to its informer.
	handlers []func() error
	// volumes is the library's handler of volumes, which queues each one that it hears of.
	volumes cache.ResourceEventHandler
}

// Run works until ctx ends. It returns an error if an informer has ended.
func (l *loop) Run(ctx context.Context) error {
	for _, add := range l.handlers {
		if err := add(); err != nil {
			return err
		}
	}
	l.ProvisionController.Run(ctx)
	return nil
}

// releaseTime is how long a client may keep the image of a deleted volume, which is looked
// at every releaseRetry, before anybody is warned: as long as Ceph counts one that died.
const releaseTime, releaseRetry = 30 * time.Second, 2 * time.Second

// patient has the library wait where clients are about to let an image go, as kubelet is
// after the last Pod. The library would warn at once, in the log and by an event; v13.0
// does, too. So patient has it pass over the volume, and queues that again.
type patient struct {
	*provisioner.Provisioner
	loop  *loop
	inUse sync.Map // since when, by the volume's UID
}

func (p *patient) Delete(ctx context.Context, pv *corev1.PersistentVolume) error {
	err := p.Provisioner.Delete(ctx, pv)
	if !errors.Is(err, rbd.ErrImageInUse) {
		p.inUse.Delete(pv.UID)
		return err
	}
	if since, _ := p.inUse.LoadOrStore(pv.UID, time.Now()); time.Since(since.(time.Time)) >= releaseTime {
		return err
	}
	// Once the loop has ended, the queue takes nothing.
	time.AfterFunc(releaseRetry, func() { p.loop.volumes.OnUpdate(pv, pv) })
	return &libcontroller.IgnoredError{Reason: err.Error()}
}

// lateInformer holds a handler back until its loop runs.
type lateInformer struct {
	cache.SharedIndexInformer
	loop *loop
}

// AddEventHandlerWithResyncPeriod returns no registration: the library ignores it.
func (i lateInformer) AddEventHandlerWithResyncPeriod(handler cache.ResourceEventHandler, period time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	i.loop.handlers = append(i.loop.handlers, func() error {
		_, err := i.SharedIndexInformer.AddEventHandlerWithResyncPeriod(handler, period)
		return err
	})
	return nil, nil
}

// newBackoff returns a rate limiter for the library's work queues. v12 takes a typed
// one (#191).
func newBackoff() workqueue.RateLimiter { //nolint:staticcheck // the library takes no typed one
	return workqueue.NewItemExponentialFailureRateLimiter(backoffStart, backoffCap) //nolint:staticcheck // as above
}

// ownVolumes hides from the library the volumes of a provisioner with our name but
// another identity: the library would put its finalizer on them, where it would stay.
// v13.0 has nothing for that.
type ownVolumes struct {
	lateInformer
	owns func(*corev1.PersistentVolume) bool
}

func (v ownVolumes) AddEventHandlerWithResyncPeriod(handler cache.ResourceEventHandler, period time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	v.loop.volumes = handler
	return v.lateInformer.AddEventHandlerWithResyncPeriod(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			pv, ok := obj.(*corev1.PersistentVolume)
			// A tombstone of a deleted volume only makes the library forget it.
			return !ok || v.owns(pv)
		},
		Handler: handler,
	}, period)
}

// savedFor is how long a volume counts as saved while the informer has not shown it. After
// that, the library would provision its claim again, which finds the image and the volume.
const savedFor = time.Minute

func (v ownVolumes) GetStore() cache.Store {
	return savedVolumes{v.SharedIndexInformer.GetStore(), utilcache.NewExpiring()}
}

// savedVolumes is the informer's store for the library, which adds each volume that it
// has saved, as it was before the save. In the informer's own store, this would replace
// what was seen since: a volume that was released at once would look as if it was not,
// and would stay for ever with its image. v11 no longer adds anything (#179).
type savedVolumes struct {
	cache.Store
	// saved holds what the library added, by name, until the informer has it.
	saved *utilcache.Expiring
}

func (s savedVolumes) Add(obj any) error {
	key, err := cache.MetaNamespaceKeyFunc(obj)
	if err != nil {
		return err
	}
	s.saved.Set(key, obj, savedFor)
	return nil
}

func (s savedVolumes) GetByKey(key string) (item any, exists bool, err error) {
	if item, exists, err = s.Store.GetByKey(key); exists || err != nil {
		s.saved.Delete(key)
		return item, exists, err
	}
	item, exists = s.saved.Get(key)
	return item, exists, nil
}

// anyNode is a NodeLister that knows every node. Every node can reach the images, so a claim's
// node does not matter; but the library drops a claim whose node is gone, even after its image
// was made. anyNode also needs no right to read nodes. v13 looks no node up (#194).
type anyNode struct{ corelisters.NodeLister }

func (anyNode) Get(name string) (*corev1.Node, error) {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, nil
}

// isNoise reports whether an event says nothing new. That the library is making a volume,
// the claim knows from kube-controller-manager, and it would be one more request for each
// claim, beside five or so. And external-resizer tries again after a conflict with
// kube-controller-manager, as there is one at most growths up to Kubernetes 1.30.
func isNoise(event *corev1.Event) bool {
	return event.Reason == "Provisioning" || strings.Contains(event.Message, "the object has been modified")
}

// quietClient is a client for libraries. It drops events that are noise: a library makes its
// recorder from its client, and has no setting for this; neither has v13.0. And to delete a
// volume that is gone is no error: somebody took our finalizer off while its image was being
// removed. In v13.0 it still is one.
type quietClient struct{ kubernetes.Interface }

func (c quietClient) CoreV1() corev1client.CoreV1Interface {
	return quietCore{c.Interface.CoreV1()}
}

type quietCore struct{ corev1client.CoreV1Interface }

func (c quietCore) Events(namespace string) corev1client.EventInterface {
	return quietEvents{c.CoreV1Interface.Events(namespace)}
}

func (c quietCore) PersistentVolumes() corev1client.PersistentVolumeInterface {
	return quietVolumes{c.CoreV1Interface.PersistentVolumes()}
}

type quietVolumes struct {
	corev1client.PersistentVolumeInterface
}

func (v quietVolumes) Delete(ctx context.Context, name string, options metav1.DeleteOptions) error {
	return utilerrors.FilterOut(v.PersistentVolumeInterface.Delete(ctx, name, options), apierrors.IsNotFound)
}

// quietEvents has what a recorder calls for a new event and for a repeated one.
type quietEvents struct{ corev1client.EventInterface }

func (e quietEvents) CreateWithEventNamespace(event *corev1.Event) (*corev1.Event, error) {
	if isNoise(event) {
		return event, nil
	}
	return e.EventInterface.CreateWithEventNamespace(event) //nolint:staticcheck // the recorder's choice
}

func (e quietEvents) PatchWithEventNamespace(event *corev1.Event, patch []byte) (*corev1.Event, error) {
	if isNoise(event) {
		return event, nil
	}
	return e.EventInterface.PatchWithEventNamespace(event, patch) //nolint:staticcheck // the recorder's choice
}
