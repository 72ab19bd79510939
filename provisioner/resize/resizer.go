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
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/klog/v2"

	externalresizer "github.com/kubernetes-csi/external-resizer/pkg/resizer"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// resizer is what external-resizer calls.
type resizer struct {
	*Loop
	claims corelisters.PersistentVolumeClaimLister
	// context is that of the loop: external-resizer hands in none.
	context func() context.Context
}

var _ externalresizer.Resizer = (*resizer)(nil)

// Name implements Resizer. Events have it.
func (r *resizer) Name() string { return r.config.Volumes.Provisioner }

// DriverSupportsControlPlaneExpansion implements Resizer: images are grown here,
// and not on nodes.
func (r *resizer) DriverSupportsControlPlaneExpansion() bool { return true }

// CanSupport reports whether a volume is one of ours. Others pass in silence:
// somebody else grows them. So do those that were handed over to ceph-csi, which
// have another source.
//
// It does not look at the claim's annotation volume.kubernetes.io/storage-resizer:
// up to Kubernetes 1.30 kube-controller-manager writes its own plugin's name there,
// whoever made the volume.
func (r *resizer) CanSupport(pv *corev1.PersistentVolume, _ *corev1.PersistentVolumeClaim) bool {
	return r.owns(pv)
}

func (l *Loop) owns(pv *corev1.PersistentVolume) bool {
	return pv.Spec.RBD != nil && pv.Annotations[volume.AnnProvisionedBy] == l.config.Volumes.Provisioner &&
		volume.IsOf(pv, l.config.Keeper.Identity)
}

// Resize gives the image of a volume at least the requested size, and returns the
// size that it has then and whether a file system is to be grown into it. It is
// safe to repeat.
func (r *resizer) Resize(pv *corev1.PersistentVolume, requested resource.Quantity) (resource.Quantity, bool, error) {
	size, err := r.resize(r.context(), pv, requested)
	if r.config.Resized != nil {
		r.config.Resized(err)
	}
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

// wantedSize is how large the image is to be, by the rule that it was made by.
func (r *resizer) wantedSize(pv *corev1.PersistentVolume, requested resource.Quantity) (int64, error) {
	resources := corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: requested}}
	// external-resizer has checked that the volume is bound to a claim.
	if ref := pv.Spec.ClaimRef; ref != nil {
		claim, err := r.claims.PersistentVolumeClaims(ref.Namespace).Get(ref.Name)
		switch {
		case apierrors.IsNotFound(err):
			// It was deleted just now, and nothing comes of it.
		case err != nil:
			return 0, fmt.Errorf("read the claim: %w", err)
		default:
			resources.Limits = claim.Spec.Resources.Limits
		}
	}
	size, err := volume.ImageSize(resources)
	if err != nil {
		return 0, infeasible{err}
	}
	return size, nil
}

// growImage returns the size of the volume's image, which is wanted or more.
// Neither clients that use it nor snapshots are in the way.
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
	// An earlier attempt was cut off before it could tell, or somebody grew the
	// image by hand: the volume gets what the image has.
	if has := int64(image.SizeBytes); has >= wanted { // #nosec G115 -- Ceph has no image of 8 EiB
		klog.FromContext(ctx).Info("Image is large enough", "image", record.Image, "pool", record.Pool, "sizeBytes", has)
		return has, nil
	}
	if err := pool.GrowImage(ctx, record.Image, uint64(wanted)); err != nil { // #nosec G115 -- ImageSize returns no negative size
		return 0, err
	}
	klog.FromContext(ctx).Info("Image grown", "image", record.Image, "pool", record.Pool,
		"fromBytes", image.SizeBytes, "sizeBytes", wanted)
	return wanted, nil
}

// infeasible marks an error that will be there until somebody changes the claim.
// It has no text of its own.
type infeasible struct{ error }

func (e infeasible) Unwrap() error { return e.error }

// verdict tells external-resizer what an error means, in the codes of CSI that it
// knows:
//
//   - Without a code the call may go on, and Kubernetes from 1.32 on, which lets
//     people take a request back, waits for it.
//   - Otherwise it is over, and nothing was changed: the claim has the condition
//     ControllerResizeError, and a smaller request is taken at once.
//   - Where another attempt would not help, it makes one once per BackoffCap.
//
// Each is tried again.
func verdict(err error) error {
	for _, unclear := range []error{rbd.ErrTimeout, rbd.ErrConnectionLost, lease.ErrNotLeading, lease.ErrStopping} {
		if errors.Is(err, unclear) {
			return err
		}
	}
	if errors.As(err, new(infeasible)) {
		return coded{err, codes.OutOfRange}
	}
	return coded{err, codes.Internal}
}

// coded is an error with a code, whose text is that of the error alone: people
// read it.
type coded struct {
	error
	code codes.Code
}

func (e coded) Unwrap() error { return e.error }

// GRPCStatus is how package status asks for the code.
func (e coded) GRPCStatus() *status.Status { return status.New(e.code, e.Error()) }
