// SPDX-License-Identifier: Apache-2.0

package ownership

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	// perSecond is how many images the loop looks at per second, so that the many
	// images after an upgrade do not disturb claims.
	perSecond = 5
	// silentFor is how long the loop leaves a pool alone that did not answer a user, so that
	// it does not hold up volumes in pools that do, and of users whom it does.
	silentFor = time.Minute
)

// The reasons of the events about volumes.
const (
	reasonForeign   = "ImageNotOwned"
	reasonTakenOver = "ImageTakenOver"
	reasonMissing   = "ImageNotFound"
)

// Config has what NewLoop needs. Every field is required.
type Config struct {
	// Keeper knows its own cluster.
	Keeper Keeper
	// Volumes opens pools, and names the provisioner whose volumes the loop looks at.
	Volumes access.Volumes
	// Client writes volumes, Cache has them.
	Client corev1client.PersistentVolumesGetter
	Cache  coreinformers.PersistentVolumeInformer
	// Events tells people about volumes with another cluster's image, with a missing
	// one, or with one that was taken over.
	Events record.EventRecorder
	// Lease guards what this replica does, and counts its operations: Drain it before
	// giving the lease back.
	Lease *lease.Guard
}

// Loop marks the images of volumes bound here as this cluster's if their owner metadata
// names no cluster yet, and takes over the images of volumes that have moved here for
// good. A volume's annotations say whether it needs that, so a settled one costs nothing.
// Run a Loop only once.
type Loop struct {
	config Config
	queue  *work.Queue[string] // of names
	pace   flowcontrol.RateLimiter

	// Only Run uses the fields below. silent is until when to leave a pool alone;
	// missing has the volumes that already got an event about a missing image.
	silent  map[string]time.Time
	missing map[string]bool
}

// NewLoop returns a Loop, or an error that names what c lacks.
func NewLoop(c Config) (*Loop, error) {
	if c.Keeper.Identity == "" || c.Keeper.Cluster == "" || c.Volumes.Access == nil || c.Volumes.Classes == nil || c.Volumes.Provisioner == "" ||
		c.Client == nil || c.Cache == nil || c.Events == nil || c.Lease == nil {
		return nil, errors.New("ownership: Keeper, Volumes, Client, Cache, Events and Lease are required")
	}
	return &Loop{
		config:  c,
		queue:   work.NewQueue[string](),
		pace:    flowcontrol.NewTokenBucketRateLimiter(perSecond, 1),
		silent:  map[string]time.Time{},
		missing: map[string]bool{},
	}, nil
}

// Run works until ctx ends, and then settles the volume that it has begun. The next leader
// finds the others.
func (l *Loop) Run(ctx context.Context) {
	_, err := l.config.Cache.Informer().AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			pv, ok := obj.(*corev1.PersistentVolume)
			return ok && l.needsLook(pv)
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: func(obj any) { l.queue.Add(obj.(*corev1.PersistentVolume).Name) },
			// A resync is no reason to look again: another cluster's image stays its own. But
			// a person may have handed the image over to this cluster.
			UpdateFunc: func(before, obj any) {
				was, pv := before.(*corev1.PersistentVolume), obj.(*corev1.PersistentVolume)
				if pv.Annotations[volume.AnnFormerCluster] != was.Annotations[volume.AnnFormerCluster] {
					l.queue.Add(pv.Name)
				}
			},
		},
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "Images of earlier versions are not marked, and none is taken over")
		return
	}
	l.queue.Run(ctx, 1, func(ctx context.Context, name string) error {
		err := l.settle(ctx, name)
		if err != nil && !work.IsLater(err) && ctx.Err() == nil {
			klog.FromContext(ctx).V(2).Info("The owner of a volume's image could not be determined, will retry", "PV", name, "err", err)
		}
		return err
	})
}

// needsLook reports whether a volume is ours and bound, and either does not say that its
// image is marked as this cluster's, or says that it moved here.
func (l *Loop) needsLook(pv *corev1.PersistentVolume) bool {
	return pv.Status.Phase == corev1.VolumeBound && pv.DeletionTimestamp == nil &&
		volume.MadeBy(pv, l.config.Volumes.Provisioner, l.config.Keeper.Identity) &&
		(pv.Annotations[volume.AnnKubernetesCluster] != l.config.Keeper.Cluster || pv.Annotations[volume.AnnFormerCluster] != "")
}

// settle looks at the image of a volume, marks it or takes it over, and notes that in the
// volume.
func (l *Loop) settle(ctx context.Context, name string) error {
	pv, err := l.config.Cache.Lister().Get(name)
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
	pool := strings.Join(append(record.Monitors, record.Pool, record.Admin), ",")
	if time.Now().Before(l.silent[pool]) {
		return work.Later(silentFor)
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
	if errors.Is(err, rbd.ErrUnreachable) || errors.Is(err, rbd.ErrTimeout) || errors.Is(err, rbd.ErrConnectionLost) {
		l.silent[pool] = time.Now().Add(silentFor)
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
	takesOver := owner.TakesOver(image.Metadata)
	if err := keeper.Secure(ctx, pool, pv, record, image); err != nil {
		if takesOver {
			return false, access.Explain(err, pool.Location)
		}
		klog.FromContext(ctx).Info("The image of a volume has another owner", "reason", err)
		l.config.Events.Event(pv, corev1.EventTypeWarning, reasonForeign, err.Error())
		return false, nil
	}
	switch {
	case takesOver:
		l.config.Events.Event(pv, corev1.EventTypeNormal, reasonTakenOver, fmt.Sprintf("image %q in pool %q belonged to the Kubernetes cluster "+
			"whose namespace kube-system has the UID %q, and is this volume's now", record.Image, record.Pool, owner.Former))
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
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q,"annotations":{%q:%q,%q:null}}}`,
		pv.UID, volume.AnnKubernetesCluster, l.config.Keeper.Cluster, volume.AnnFormerCluster)
	_, err := l.config.Client.PersistentVolumes().Patch(ctx, pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // the volume is gone, or another one has its name
	}
	return err
}
