// SPDX-License-Identifier: Apache-2.0

// Package attach settles the VolumeAttachments of our node plugin's volumes. To attach an
// image there is nothing to do: a node maps it by itself. But kube-controller-manager makes
// no VolumeAttachment for a volume that a Pod on one node may use while there is one for
// another node, and it knows when a node is out of service. That is what keeps
// a volume from two writers, and it waits until somebody says that the volume is attached.
//
// When that is, external-attacher decides. Which clients have the image open, the node
// plugin asks Ceph.
package attach

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/kubernetes-csi/external-attacher/v4/pkg/controller"
	"github.com/kubernetes-csi/external-attacher/v4/pkg/features"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Config has what New needs. Every field is required.
type Config struct {
	Client kubernetes.Interface
	// Volumes has the cache of volumes, which may be trimmed: external-attacher wants it, but
	// its trivial handler reads no volume. Fill it before Run.
	Volumes coreinformers.PersistentVolumeInformer
	// ResyncPeriod is how often the loop looks at all VolumeAttachments again.
	ResyncPeriod time.Duration
	// Workers is how many VolumeAttachments the loop works on at a time.
	Workers int
	// BackoffStart and BackoffCap bound the time before a failed one is retried.
	BackoffStart, BackoffCap time.Duration
	// Lease guards what this replica does, and counts its requests. Drain it before giving
	// the lease back.
	Lease *lease.Guard
}

// Loop says of each VolumeAttachment of volume.CSIDriver that its volume is attached, and
// leaves those of other drivers alone. A deleted one goes by itself, since the loop
// sets no finalizer.
//
// The driver's name is the same for all provisioners of a Kubernetes cluster, and their
// leases are not. So several may do this at a time, each for the volumes of all: they write
// the same word once or twice, and whoever removes one of them leaves no volume waiting.
type Loop struct {
	config    Config
	forbidden sync.Once // for the log
}

// New returns a Loop, or an error that names what c lacks. Run it only once.
func New(c Config) (*Loop, error) {
	if c.Client == nil || c.Volumes == nil || c.Lease == nil {
		return nil, errors.New("attach: Client, Volumes and Lease are required")
	}
	if c.Workers < 1 || c.BackoffStart <= 0 || c.BackoffCap < c.BackoffStart || c.ResyncPeriod <= 0 {
		return nil, errors.New("attach: Workers, BackoffStart, BackoffCap and ResyncPeriod are required")
	}
	// With this gate the controller lets its caller wait for its workers. It changes
	// nothing else there; the lease is ours.
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(map[string]bool{string(features.ReleaseLeaderElectionOnExit): true}); err != nil {
		return nil, err
	}
	return &Loop{config: c}, nil
}

// Run works until ctx ends, and returns when all that it started has ended. It needs the
// rights to list and watch VolumeAttachments and to patch their status.
//
// The cache of VolumeAttachments is its own. In the common factory, a missing right would keep
// the process from becoming ready; and only a leader needs this cache.
func (l *Loop) Run(ctx context.Context) {
	c := l.config
	factory := informers.NewSharedInformerFactoryWithOptions(c.Client, c.ResyncPeriod, informers.WithTransform(trim))
	attachments := factory.Storage().V1().VolumeAttachments()
	// It fails only once the informer was started.
	_ = attachments.Informer().SetWatchErrorHandlerWithContext(l.watchFailed)
	factory.StartWithContext(ctx)
	defer factory.Shutdown()
	if err := factory.WaitForCacheSyncWithContext(ctx).AsError(); err != nil {
		return // ctx has ended
	}

	client := fencedClient{c.Client, c.Lease}
	limiter := func() workqueue.TypedRateLimiter[string] {
		return workqueue.NewTypedItemExponentialFailureRateLimiter[string](c.BackoffStart, c.BackoffCap)
	}
	// Reconciling compares with what a driver lists as attached; ours keeps no list.
	const reconcile, reconcilePeriod = false, 0
	var workers sync.WaitGroup
	defer workers.Wait()
	controller.NewCSIAttachController(klog.FromContext(ctx), client, volume.CSIDriver, controller.NewTrivialHandler(client),
		attachments, c.Volumes, limiter(), limiter(), reconcile, reconcilePeriod).Run(ctx, c.Workers, &workers)
}

// watchFailed logs why the cache is not up to date. A right that is taken away while the loop
// runs would otherwise fill the log, once for each attempt.
func (l *Loop) watchFailed(ctx context.Context, r *cache.Reflector, err error) {
	if !apierrors.IsForbidden(err) {
		cache.DefaultWatchErrorHandler(ctx, r, err)
		return
	}
	l.forbidden.Do(func() {
		klog.FromContext(ctx).Error(err, "Volumes of the node plugin are not attached until this is allowed: apply rbac/clusterrole.yaml",
			"driver", volume.CSIDriver)
	})
}

// trim is a cache.TransformFunc. Of other drivers' VolumeAttachments, it leaves what tells that
// they are: there are as many as volumes in use, and nothing selects ours on the server.
func trim(obj any) (any, error) {
	attachment, ok := obj.(*storagev1.VolumeAttachment)
	switch {
	case !ok: // a tombstone
	case attachment.Spec.Attacher == volume.CSIDriver:
		attachment.ManagedFields = nil
	default:
		*attachment = storagev1.VolumeAttachment{
			ObjectMeta: metav1.ObjectMeta{Name: attachment.Name, ResourceVersion: attachment.ResourceVersion},
			Spec:       storagev1.VolumeAttachmentSpec{Attacher: attachment.Spec.Attacher},
		}
	}
	return obj, nil
}
