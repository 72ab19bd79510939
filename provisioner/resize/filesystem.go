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
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

// growFileSystems makes kubelet grow the file systems of clones that are larger than their
// sources, until ctx ends; the next leader finds what is left to do. Such a volume's
// annotation has the size of its file system, while its claim got the volume's capacity
// when it was bound. The claim is given the size of the file system instead: it then looks
// like a claim whose volume was grown, and kubelet acts on that.
func (l *Loop) growFileSystems(ctx context.Context) {
	queue := work.NewQueue[string]()
	see := func(obj any) {
		if pv, ok := obj.(*corev1.PersistentVolume); ok && pv.Annotations[volume.AnnFileSystemSize] != "" {
			queue.Add(pv.Name)
		}
	}
	_, err := l.cached.PersistentVolumes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    see,
		UpdateFunc: func(_, obj any) { see(obj) },
	})
	if err != nil {
		klog.FromContext(ctx).Error(err, "The file systems of clones that are larger than their sources are not grown")
		return
	}
	queue.Run(ctx, 1, func(ctx context.Context, name string) error {
		err := l.growFileSystem(ctx, name)
		if err != nil {
			klog.FromContext(ctx).V(2).Info("The file system of a clone could not be grown, will retry", "PV", name, "err", err)
		}
		return err
	})
}

// growFileSystem gives the claim of a volume the size of its file system, and then removes the
// annotation from the volume. Doing it twice after a crash is harmless: kubelet finds that
// the file system already has its size.
func (l *Loop) growFileSystem(ctx context.Context, name string) error {
	pv, err := l.cached.PersistentVolumes().Lister().Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	text, ref := pv.Annotations[volume.AnnFileSystemSize], pv.Spec.ClaimRef
	if text == "" || ref == nil || !l.owns(pv) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	// Not from the cache, which has no sizes of claims.
	claim, err := l.client.CoreV1().PersistentVolumeClaims(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
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
		if err := l.patchStatus(ctx, claim, has); err != nil {
			return err
		}
		klog.FromContext(ctx).Info("The file system of a clone is to be grown", "PVC", klog.KObj(claim), "PV", name,
			"from", text, "to", pv.Spec.Capacity.Storage().String())
	}
	// This also removes an annotation that can't be read: it is of no use.
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:null}}}`, volume.AnnFileSystemSize)
	_, err = l.client.CoreV1().PersistentVolumes().Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// patchStatus gives a claim that capacity and sets the condition that goes with it, because
// external-resizer ignores a capacity that shrinks.
func (l *Loop) patchStatus(ctx context.Context, claim *corev1.PersistentVolumeClaim, has resource.Quantity) error {
	conditions := append(slices.Clone(claim.Status.Conditions), corev1.PersistentVolumeClaimCondition{
		Type:               corev1.PersistentVolumeClaimFileSystemResizePending,
		Status:             corev1.ConditionTrue,
		LastTransitionTime: metav1.Now(),
		Message:            "The volume is larger than the one it was cloned from: its file system grows once a Pod uses it",
	})
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": claim.UID, "resourceVersion": claim.ResourceVersion},
		"status":   map[string]any{"capacity": corev1.ResourceList{corev1.ResourceStorage: has}, "conditions": conditions},
	})
	if err != nil {
		return err
	}
	_, err = l.client.CoreV1().PersistentVolumeClaims(claim.Namespace).
		Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}
