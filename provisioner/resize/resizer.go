// SPDX-License-Identifier: Apache-2.0

package resize

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"

	externalresizer "github.com/kubernetes-csi/external-resizer/pkg/resizer"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// resizer implements what external-resizer calls.
type resizer struct {
	*Loop
	// context returns the loop's context: external-resizer passes none.
	context func() context.Context
}

var _ externalresizer.Resizer = (*resizer)(nil)

// Name implements Resizer. Events show it.
func (r *resizer) Name() string { return r.config.Volumes.Provisioner }

// DriverSupportsControlPlaneExpansion implements Resizer: nodes grow no images.
func (r *resizer) DriverSupportsControlPlaneExpansion() bool { return true }

// CanSupport reports whether a volume is ours. Others are skipped silently, because another
// resizer grows them, as it does those that were handed over to ceph-csi.
//
// It ignores the claim's annotation volume.kubernetes.io/storage-resizer: up to Kubernetes
// 1.30, kube-controller-manager writes its own plugin's name there, whatever made the volume.
func (r *resizer) CanSupport(pv *corev1.PersistentVolume, _ *corev1.PersistentVolumeClaim) bool {
	return r.owns(pv)
}

func (l *Loop) owns(pv *corev1.PersistentVolume) bool {
	return volume.HasSource(pv) && volume.MadeBy(pv, l.config.Volumes.Provisioner, l.config.Keeper.Identity)
}

// Resize grows the image of a volume to at least the requested size. It returns the
// image's new size and whether a file system must grow with it. It is safe to repeat.
func (r *resizer) Resize(pv *corev1.PersistentVolume, requested resource.Quantity) (resource.Quantity, bool, error) {
	size, err := r.resize(r.context(), pv, requested)
	r.config.Resized(err)
	if err != nil {
		return resource.Quantity{}, false, verdict(err)
	}
	block := pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock
	return *resource.NewQuantity(size, resource.BinarySI), !block, nil
}

func (r *resizer) resize(ctx context.Context, pv *corev1.PersistentVolume, requested resource.Quantity) (int64, error) {
	ctx, end, err := r.config.Lease.Begin(ctx)
	if err != nil {
		return 0, err
	}
	defer end()
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("PV", pv.Name))

	record, err := volume.Read(pv)
	if err != nil {
		return 0, err
	}
	wanted, err := r.wantedSize(pv, requested)
	if err != nil {
		return 0, err
	}
	pool, err := r.config.Volumes.Open(ctx, pv, record)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	size, err := r.growImage(ctx, pool, pv, record, wanted)
	if err != nil {
		return 0, access.Explain(err, pool.Location)
	}
	return size, nil
}

// wantedSize returns the size that the image should have, by the rule for new images.
func (r *resizer) wantedSize(pv *corev1.PersistentVolume, requested resource.Quantity) (int64, error) {
	resources := corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: requested}}
	// external-resizer has checked that the volume is bound to a claim.
	if ref := pv.Spec.ClaimRef; ref != nil {
		claim, err := r.cached.PersistentVolumeClaims().Lister().PersistentVolumeClaims(ref.Namespace).Get(ref.Name)
		switch {
		case err == nil:
			resources.Limits = claim.Spec.Resources.Limits
		case !apierrors.IsNotFound(err): // a claim that was deleted just now has no limit
			return 0, fmt.Errorf("read the claim: %w", err)
		}
	}
	size, err := volume.ImageSize(resources)
	if err != nil {
		return 0, coded{err, codes.OutOfRange}
	}
	return size, nil
}

// growImage grows the volume's image if it is smaller than wanted, and returns its size.
// Clients that use the image and snapshots of it do not matter.
func (r *resizer) growImage(ctx context.Context, pool rbd.Pool, pv *corev1.PersistentVolume, record volume.Record, wanted int64) (int64, error) {
	image, err := pool.Image(ctx, record.Image)
	if errors.Is(err, rbd.ErrImageNotFound) {
		return 0, fmt.Errorf("%w: bring it back under its name, or delete the claim", err)
	}
	if err != nil {
		return 0, err
	}
	if err := r.config.Keeper.Secure(ctx, pool, pv, record, image); err != nil {
		return 0, err
	}
	// An earlier attempt was cut off, or a person grew the image: the volume gets its size.
	if has := int64(image.SizeBytes); has >= wanted { // #nosec G115 -- Ceph has no image of 8 EiB
		klog.FromContext(ctx).Info("Image is large enough", "image", record.Image, "pool", record.Pool, "sizeBytes", has)
		return has, nil
	}
	if err := pool.GrowImage(ctx, record.Image, uint64(wanted)); err != nil { // #nosec G115 -- ImageSize returns no negative size
		return 0, err
	}
	klog.FromContext(ctx).Info("Image grown", "image", record.Image, "pool", record.Pool,
		"fromBytes", image.SizeBytes, "sizeBytes", wanted)
	r.config.Sized(pv.Spec.ClaimRef, wanted)
	return wanted, nil
}

// verdict tells external-resizer what an error means, in the CSI codes that it knows:
//
//   - Without a code, the call may still be running. Kubernetes 1.32 and later, which
//     let people take a request back, wait for it.
//   - codes.Internal: the call is over and changed nothing. The claim gets the condition
//     ControllerResizeError, and a smaller request is accepted at once.
//   - codes.OutOfRange: another attempt would not help before the claim changes, so
//     external-resizer makes only one per BackoffCap.
//
// It retries all of them.
func verdict(err error) error {
	if errors.As(err, new(coded)) ||
		errors.Is(err, rbd.ErrTimeout) || errors.Is(err, rbd.ErrConnectionLost) ||
		errors.Is(err, lease.ErrNotLeading) || errors.Is(err, lease.ErrStopping) {
		return err
	}
	return coded{err, codes.Internal}
}

// coded is an error with a code. Its text is the error's alone, because people read it.
type coded struct {
	error
	code codes.Code
}

func (e coded) Unwrap() error { return e.error }

// GRPCStatus gives package status the code.
func (e coded) GRPCStatus() *status.Status { return status.New(e.code, e.Error()) }
