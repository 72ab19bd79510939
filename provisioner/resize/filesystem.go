// SPDX-License-Identifier: Apache-2.0

package resize

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// fileSystems makes kubelet grow the file systems of clones that are larger than their
// sources. Such a volume's annotation has the size of its file system, while its claim got
// the volume's capacity when it was bound. fileSystems gives the claim the size of the
// file system instead: it then looks like a claim whose volume was grown, and kubelet
// acts on that.
type fileSystems struct {
	*Loop
	client  kubernetes.Interface
	volumes corelisters.PersistentVolumeLister
	claims  corelisters.PersistentVolumeClaimLister
	queue   workqueue.TypedRateLimitingInterface[string]
}

func newFileSystems(l *Loop) *fileSystems {
	c := l.config
	core := c.Factory.Core().V1()
	return &fileSystems{
		Loop:    l,
		client:  fencedClient{c.Client, c.Lease},
		volumes: core.PersistentVolumes().Lister(),
		claims:  core.PersistentVolumeClaims().Lister(),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](c.BackoffStart, c.BackoffCap)),
	}
}

// run works until ctx ends. The next leader finds what is left to do.
func (f *fileSystems) run(ctx context.Context) error {
	informer := f.config.Factory.Core().V1().PersistentVolumes().Informer()
	handler, err := informer.AddEventHandler(cache.FilteringResourceEventHandler{
		FilterFunc: func(obj any) bool {
			pv, ok := obj.(*corev1.PersistentVolume)
			return ok && pv.Annotations[volume.AnnFileSystemSize] != ""
		},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    f.add,
			UpdateFunc: func(_, obj any) { f.add(obj) },
		},
	})
	if err != nil {
		return err
	}
	defer func() { _ = informer.RemoveEventHandler(handler) }() // no error for its own handler
	stop := context.AfterFunc(ctx, f.queue.ShutDown)
	defer stop()
	for {
		name, done := f.queue.Get()
		if done {
			return nil
		}
		if err := f.settle(ctx, name); err != nil {
			klog.FromContext(ctx).V(2).Info("The file system of a clone could not be grown, will retry", "PV", name, "err", err)
			f.queue.AddRateLimited(name)
		} else {
			f.queue.Forget(name)
		}
		f.queue.Done(name)
	}
}

func (f *fileSystems) add(obj any) {
	if pv, ok := obj.(*corev1.PersistentVolume); ok {
		f.queue.Add(pv.Name)
	}
}

// settle gives the claim of a volume the size of its file system, and then removes the
// annotation from the volume. Doing it twice after a crash is harmless: kubelet finds that
// the file system already has its size.
func (f *fileSystems) settle(ctx context.Context, name string) error {
	pv, err := f.volumes.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	text := pv.Annotations[volume.AnnFileSystemSize]
	if text == "" || pv.Spec.ClaimRef == nil || !f.owns(pv) {
		return nil
	}
	ref := pv.Spec.ClaimRef
	claim, err := f.claims.PersistentVolumeClaims(ref.Namespace).Get(ref.Name)
	switch {
	case apierrors.IsNotFound(err), err == nil && claim.UID != ref.UID:
		return nil // Kubernetes will release the volume
	case err != nil:
		return err
	case claim.Status.Phase != corev1.ClaimBound:
		return fmt.Errorf("claim %s is not bound yet", klog.KObj(claim))
	}
	has, err := resource.ParseQuantity(text)
	if err == nil && has.Cmp(claim.Status.Capacity[corev1.ResourceStorage]) < 0 {
		if err := f.patchStatus(ctx, claim, has); err != nil {
			return err
		}
		klog.FromContext(ctx).Info("The file system of a clone is to be grown", "PVC", klog.KObj(claim), "PV", name,
			"from", text, "to", pv.Spec.Capacity.Storage().String())
	}
	// This also removes an annotation that can't be read: it is of no use.
	return f.patch(map[string]any{"metadata": map[string]any{"annotations": map[string]any{volume.AnnFileSystemSize: nil}}}, func(data []byte) error {
		_, err := f.client.CoreV1().PersistentVolumes().Patch(ctx, name, types.MergePatchType, data, metav1.PatchOptions{})
		return err
	})
}

// patchStatus gives a claim that capacity and sets the condition that goes with it, because
// external-resizer ignores a capacity that shrinks.
func (f *fileSystems) patchStatus(ctx context.Context, claim *corev1.PersistentVolumeClaim, has resource.Quantity) error {
	conditions := append(slices.Clone(claim.Status.Conditions), corev1.PersistentVolumeClaimCondition{
		Type:               corev1.PersistentVolumeClaimFileSystemResizePending,
		Status:             corev1.ConditionTrue,
		LastTransitionTime: metav1.Now(),
		Message:            "The volume is larger than the one it was cloned from: its file system grows once a Pod uses it",
	})
	return f.patch(map[string]any{
		"metadata": map[string]any{"uid": claim.UID, "resourceVersion": claim.ResourceVersion},
		"status":   map[string]any{"capacity": corev1.ResourceList{corev1.ResourceStorage: has}, "conditions": conditions},
	}, func(data []byte) error {
		_, err := f.client.CoreV1().PersistentVolumeClaims(claim.Namespace).
			Patch(ctx, claim.Name, types.MergePatchType, data, metav1.PatchOptions{}, "status")
		return err
	})
}

func (f *fileSystems) patch(change map[string]any, send func([]byte) error) error {
	data, err := json.Marshal(change)
	if err != nil {
		return err
	}
	return send(data)
}
