// SPDX-License-Identifier: Apache-2.0

package ownership

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	// perSecond is how many images the loop looks at per second, so that the many
	// images after an upgrade do not disturb claims.
	perSecond = 5
	// retryStart and retryCap bound the time before the loop retries an image that it
	// could not look at or mark. No claim waits for it.
	retryStart = 5 * time.Second
	retryCap   = 10 * time.Minute
	// silentFor is how long the loop leaves a pool alone that did not answer, so that it
	// does not hold up volumes in pools that do.
	silentFor = time.Minute
)

// The reasons of the events about volumes.
const (
	reasonForeign   = "ImageNotOwned"
	reasonTakenOver = "ImageTakenOver"
	reasonMissing   = "ImageNotFound"
)

// errSilent means that a volume's pool did not answer lately.
var errSilent = errors.New("its pool did not answer lately")

// Config has what NewLoop needs. Every field is required unless it says otherwise.
type Config struct {
	// Keeper knows its own cluster.
	Keeper Keeper
	// Volumes opens pools, and names the provisioner whose volumes the loop looks at.
	Volumes access.Volumes
	// Client writes volumes; Informer and Lister are their cache.
	Client   corev1client.PersistentVolumesGetter
	Informer cache.SharedInformer
	Lister   corelisters.PersistentVolumeLister
	// Events tells people about volumes with another cluster's image, with a missing
	// one, or with one that was taken over.
	Events record.EventRecorder
	// Lease guards what this replica does, and counts its operations: Drain it before
	// giving the lease back. Nil means no lease.
	Lease *lease.Guard
}

// Loop marks the images of volumes bound here as this cluster's if their owner metadata
// names no cluster yet, and takes over the images of volumes that have moved here for
// good. A volume's annotations say whether it needs that, so a settled one costs nothing.
// Run a Loop only once.
type Loop struct {
	config Config
	queue  workqueue.TypedRateLimitingInterface[string]
	pace   flowcontrol.RateLimiter

	// Only Run uses the fields below. silent is until when to leave a pool alone;
	// missing has the volumes that already got an event about a missing image.
	silent  map[string]time.Time
	missing map[string]bool
}

// NewLoop returns a Loop, or an error that names what c lacks.
func NewLoop(c Config) (*Loop, error) {
	if c.Keeper.Identity == "" || c.Keeper.Cluster == "" || c.Volumes.Access == nil || c.Volumes.Classes == nil || c.Volumes.Provisioner == "" ||
		c.Client == nil || c.Informer == nil || c.Lister == nil || c.Events == nil {
		return nil, errors.New("ownership: Keeper, Volumes, Client, Informer, Lister and Events are required")
	}
	if c.Lease == nil {
		c.Lease = lease.New(nil)
	}
	return &Loop{
		config: c,
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryStart, retryCap)),
		pace:    flowcontrol.NewTokenBucketRateLimiter(perSecond, 1),
		silent:  map[string]time.Time{},
		missing: map[string]bool{},
	}, nil
}

// Run works until ctx ends, and then settles the volume that it has begun. The next leader
// finds the others.
func (l *Loop) Run(ctx context.Context) error {
	see := func(obj any) {
		if pv, ok := obj.(*corev1.PersistentVolume); ok && l.needsLook(pv) {
			l.queue.Add(pv.Name)
		}
	}
	handler, err := l.config.Informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: see,
		UpdateFunc: func(before, obj any) {
			// A resync is no reason to look again: another cluster's image stays its own.
			if was, ok := before.(*corev1.PersistentVolume); !ok || !l.needsLook(was) || changed(was, obj) {
				see(obj)
			}
		},
	})
	if err != nil {
		return err
	}
	defer func() { _ = l.config.Informer.RemoveEventHandler(handler) }() // no error for its own handler
	stop := context.AfterFunc(ctx, l.queue.ShutDown)
	defer stop()
	for {
		name, done := l.queue.Get()
		if done {
			return nil
		}
		if err := l.settle(ctx, name); errors.Is(err, errSilent) {
			l.queue.AddAfter(name, silentFor)
		} else if err != nil && ctx.Err() == nil {
			klog.FromContext(ctx).V(2).Info("The owner of a volume's image could not be determined, will retry", "PV", name, "err", err)
			l.queue.AddRateLimited(name)
		} else {
			l.queue.Forget(name)
		}
		l.queue.Done(name)
	}
}

// changed reports whether AnnFormerCluster changed: a person may have handed the image of
// a volume over to this cluster.
func changed(was *corev1.PersistentVolume, obj any) bool {
	pv, ok := obj.(*corev1.PersistentVolume)
	return ok && pv.Annotations[volume.AnnFormerCluster] != was.Annotations[volume.AnnFormerCluster]
}

// needsLook reports whether a volume is ours and bound, and either does not say that its
// image is marked as this cluster's, or says that it moved here.
func (l *Loop) needsLook(pv *corev1.PersistentVolume) bool {
	return pv.Status.Phase == corev1.VolumeBound && pv.DeletionTimestamp == nil &&
		pv.Annotations[volume.AnnProvisionedBy] == l.config.Volumes.Provisioner && volume.IsOf(pv, l.config.Keeper.Identity) &&
		(pv.Annotations[volume.AnnKubernetesCluster] != l.config.Keeper.Cluster || pv.Annotations[volume.AnnFormerCluster] != "")
}

// settle looks at the image of a volume, marks it or takes it over, and notes that in the
// volume.
func (l *Loop) settle(ctx context.Context, name string) error {
	pv, err := l.config.Lister.Get(name)
	if apierrors.IsNotFound(err) || err == nil && !l.needsLook(pv) {
		return nil
	}
	if err != nil {
		return err
	}
	record, err := volume.Read(pv)
	if err != nil {
		return nil // its image is unknown; its deletion reports that
	}
	pool := strings.Join(append(record.Monitors, record.Pool), ",")
	if time.Now().Before(l.silent[pool]) {
		return errSilent
	}
	if err := l.pace.Wait(ctx); err != nil {
		return err // ctx has ended
	}
	ctx, end, err := l.config.Lease.Begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("PV", name))
	ours, err := l.own(ctx, pv, record)
	for _, silence := range []error{rbd.ErrUnreachable, rbd.ErrTimeout, rbd.ErrConnectionLost} {
		if errors.Is(err, silence) {
			l.silent[pool] = time.Now().Add(silentFor)
		}
	}
	if err != nil || !ours {
		return err
	}
	return l.note(ctx, pv)
}

// own makes the image of a volume this cluster's if it may, and reports whether it is.
func (l *Loop) own(ctx context.Context, pv *corev1.PersistentVolume, record volume.Record) (bool, error) {
	pool, err := l.config.Volumes.Open(ctx, pv, record)
	if err != nil {
		return false, err
	}
	defer pool.Close()
	image, err := pool.Image(ctx, record.Image)
	if errors.Is(err, rbd.ErrImageNotFound) {
		if !l.missing[pv.Name] {
			l.missing[pv.Name] = true
			l.config.Events.Event(pv, corev1.EventTypeWarning, reasonMissing, fmt.Sprintf("image %q is not in pool %q: if an earlier volume of it "+
				"was deleted, it may be in the trash for a while; look for it with: rbd trash ls --pool %s", record.Image, record.Pool, record.Pool))
		}
		return false, err
	}
	delete(l.missing, pv.Name)
	if err != nil {
		return false, access.Explain(err, pool.Location)
	}
	if !l.config.Lease.Held() {
		return false, lease.ErrNotLeading // only the leader may send events
	}
	keeper := l.config.Keeper
	owner := volume.OwnerOf(pv, keeper.Identity, keeper.Cluster)
	former := ""
	if owner.TakesOver(image.Metadata) {
		former = owner.Former
	}
	if err := keeper.Secure(ctx, pool, pv, record, image); err != nil {
		if former != "" {
			return false, access.Explain(err, pool.Location)
		}
		klog.FromContext(ctx).Info("The image of a volume has another owner", "reason", err)
		l.config.Events.Event(pv, corev1.EventTypeWarning, reasonForeign, err.Error())
		return false, nil
	}
	switch {
	case former != "":
		l.config.Events.Event(pv, corev1.EventTypeNormal, reasonTakenOver, fmt.Sprintf("image %q in pool %q belonged to the Kubernetes cluster "+
			"whose namespace kube-system has the UID %q, and is this volume's now", record.Image, record.Pool, former))
	case image.Metadata[volume.MetaCluster] == "":
		err := pool.SetMetadata(ctx, record.Image, map[string]string{volume.MetaCluster: keeper.Cluster})
		if err != nil {
			return false, access.Explain(err, pool.Location)
		}
		klog.FromContext(ctx).Info("Image marked as this cluster's", "image", record.Image, "pool", record.Pool)
	}
	return true, nil
}

// note writes into a volume that its image is marked. It removes AnnFormerCluster, which
// was followed or was wrong: left there, it would take the image back after the image is
// handed on.
func (l *Loop) note(ctx context.Context, pv *corev1.PersistentVolume) error {
	if !l.config.Lease.Held() {
		return lease.ErrNotLeading
	}
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": pv.UID,
		"annotations": map[string]any{
			volume.AnnKubernetesCluster: l.config.Keeper.Cluster,
			volume.AnnFormerCluster:     nil,
		},
	}})
	if err != nil {
		return err
	}
	_, err = l.config.Client.PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // the volume is gone, or another one has its name
	}
	return err
}
