// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// The reasons of the events that this package sends itself; the library sends
// those about failures.
const (
	reasonMonitorUnresolved = "MonitorUnresolved"
	reasonUserSecret        = "UserSecretType"
)

// Linux refuses to mount an XFS whose UUID another one has that is mounted, as the
// clone of a file system has its source's, unless it is told not to look.
const (
	xfs    = "xfs"
	nouuid = "nouuid"
)

// Provision makes an image for a claim and returns its PersistentVolume, which
// the library saves. See state for what it returns beside an error. Calling it
// again for the same claim finds the same image.
func (p *Provisioner) Provision(ctx context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	ctx, end, err := p.begin(ctx)
	if err != nil {
		return nil, controller.ProvisioningNoChange, err
	}
	defer end()
	logger := klog.FromContext(ctx).WithValues("PVC", klog.KObj(options.PVC), "PV", options.PVName,
		"StorageClass", options.StorageClass.Name)
	ctx = klog.NewContext(ctx, logger)

	pv, changed, err := p.provision(ctx, options)
	if err == nil && !p.config.Lease.Held() {
		err = lease.ErrNotLeading // only the leader may save the volume
	}
	if err != nil {
		return nil, state(err, changed), unwrapIgnored(err)
	}
	return pv, state(nil, changed), nil
}

// unwrapIgnored returns the IgnoredError in err, bare, since the library looks
// for it with a type assertion; or else err.
func unwrapIgnored(err error) error {
	var ignored *controller.IgnoredError
	if errors.As(err, &ignored) {
		return ignored
	}
	return err
}

// provision makes the image and returns the volume. Beside an error, changed says that
// there may be an image that was made for the claim, by this call or an earlier one.
func (p *Provisioner) provision(ctx context.Context, options controller.ProvisionOptions) (pv *corev1.PersistentVolume, changed bool, err error) {
	r, err := p.newRequest(options)
	if err != nil {
		return nil, false, err
	}
	wanted, err := p.claimWantsVolume(ctx, options)
	if err != nil {
		return nil, false, err
	}
	location := r.params.Location()
	if wanted {
		if err := p.checkUserSecret(ctx, options.PVC, r); err != nil {
			return nil, false, err
		}
	}
	if r.isClone() {
		r.source = &source{claim: r.sourceClaim}
		if wanted {
			r.source = p.findSource(ctx, options.PVC, r)
		}
	}
	pool, err := p.config.Access.Open(ctx, location)
	if err != nil && r.source != nil && r.source.err != nil {
		return nil, false, r.source.err
	}
	if err != nil {
		// Somebody may have made the image of a claim that is not wanted any more: ask
		// until it is certain.
		return nil, !wanted, err
	}
	defer pool.Close()
	if len(pool.Monitors.Kernel) == 0 {
		return nil, !wanted, errors.New("no monitor that is left speaks message protocol 1 (port 6789), " +
			"the only one that nodes map images with")
	}
	for _, unresolved := range pool.Monitors.Unresolved {
		p.config.Events.Event(options.PVC, corev1.EventTypeWarning, reasonMonitorUnresolved, unresolved.Error())
	}

	if err := p.makeImage(ctx, pool, location, r, options.PVC, wanted); err != nil {
		return nil, !wanted || pool.Changed(), access.Explain(err, location)
	}
	return p.newVolume(options, r, pool), true, nil
}

// claimWantsVolume looks at the claim once more, since the library's copy may be
// from its memory, as it is after an unclear outcome. It returns an IgnoredError
// when the claim already has this very volume, and false when it is gone, going,
// or was given another.
//
// A cache that says that the claim waits is believed where the volume is to be
// deleted with its claim: when the cache lags behind, a volume is made for nobody,
// which Kubernetes releases and deletes. With another policy it would stay. All else
// is asked of the API server.
func (p *Provisioner) claimWantsVolume(ctx context.Context, options controller.ProvisionOptions) (bool, error) {
	claim := options.PVC
	if ptr.Deref(options.StorageClass.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete) == corev1.PersistentVolumeReclaimDelete {
		cached, err := p.config.ClaimLister.PersistentVolumeClaims(claim.Namespace).Get(claim.Name)
		if err == nil && cached.UID == claim.UID && waits(cached) {
			return true, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	live, err := p.config.Claims.PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the claim once more: %w", err)
	case live.UID != claim.UID:
		return false, nil
	case live.Spec.VolumeName == options.PVName:
		return false, &controller.IgnoredError{Reason: "the claim has its volume"}
	}
	return waits(live), nil
}

// waits reports whether a claim is to get a volume.
func waits(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil
}

// findImage is for a claim that does not want its volume any more. An earlier
// attempt may have made the image: it gets a volume all the same, which
// Kubernetes then releases and treats by its reclaim policy, as if the claim had
// been deleted a moment later. If there is none, the library is told to forget
// the claim.
func (p *Provisioner) findImage(ctx context.Context, pool rbd.Pool, r request, owner owner) error {
	found, err := p.adoptImage(ctx, pool, r, owner)
	switch {
	case errors.Is(err, errImageConflict):
		// Nothing of ours is there.
	case err != nil:
		return err
	case found:
		klog.FromContext(ctx).Info("The claim is gone, but its image was made: saving a volume for it to be released",
			"image", r.image)
		return nil
	}
	return &controller.IgnoredError{Reason: "the claim does not want a volume any more"}
}

// checkUserSecret looks at the secret that kubelet will use, so that a mistake
// shows on the claim and not on a Pod that does not start.
func (p *Provisioner) checkUserSecret(ctx context.Context, claim *corev1.PersistentVolumeClaim, r request) error {
	warning, err := p.config.Access.CheckUserSecret(ctx, r.userSecret)
	if errors.Is(err, access.ErrSecretForbidden) {
		// By default the provisioner may read secrets in its own namespace
		// only, and need not read this one.
		if _, said := p.forbidden.LoadOrStore(r.userSecret.Namespace, true); !said {
			klog.FromContext(ctx).Info("The user's secret is not checked before its use: reading it is not allowed",
				"secret", r.userSecret.String())
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("user's %w", err)
	}
	if warning != "" {
		p.config.Events.Event(claim, corev1.EventTypeWarning, reasonUserSecret, warning)
	}
	return nil
}

func (p *Provisioner) newVolume(options controller.ProvisionOptions, r request, pool *access.Pool) *corev1.PersistentVolume {
	// Claim and class come from caches that others read.
	claim, class := options.PVC.DeepCopy(), options.StorageClass.DeepCopy()
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: r.pvName},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:  claim.Spec.AccessModes,
			MountOptions: class.MountOptions,
			VolumeMode:   claim.Spec.VolumeMode,
			Capacity: corev1.ResourceList{
				corev1.ResourceStorage: *resource.NewQuantity(r.sizeBytes, resource.BinarySI),
			},
		},
	}
	if class.ReclaimPolicy != nil {
		pv.Spec.PersistentVolumeReclaimPolicy = *class.ReclaimPolicy
	}
	if r.source.known() && ptr.Deref(claim.Spec.VolumeMode, "") != corev1.PersistentVolumeBlock {
		r.fsType = withFileSystemOf(*r.source, pv)
	}
	volume.Record{
		Identity: p.config.Identity,
		Cluster:  p.config.ClusterUID,
		FSID:     pool.FSID,
		Monitors: pool.Monitors.Kernel,
		Pool:     r.params.Pool,
		Image:    r.image,
		User:     r.params.User,
		// As the class has it: without a namespace, kubelet takes the Pod's.
		UserSecret:  r.params.UserSecret,
		FSType:      r.fsType,
		Admin:       r.params.Admin,
		AdminSecret: r.params.AdminSecret,

		TrashRetention: r.params.TrashRetention,
	}.Write(pv)
	return pv
}

// withFileSystemOf tells of a clone's volume that it comes with its source's file
// system, and returns the type of that.
func withFileSystemOf(s source, pv *corev1.PersistentVolume) string {
	if s.capacity.Cmp(pv.Spec.Capacity[corev1.ResourceStorage]) < 0 {
		metav1.SetMetaDataAnnotation(&pv.ObjectMeta, volume.AnnFileSystemSize, s.capacity.String())
	}
	if s.record.FSType == xfs && !slices.Contains(pv.Spec.MountOptions, nouuid) {
		pv.Spec.MountOptions = append(pv.Spec.MountOptions, nouuid)
	}
	return s.record.FSType
}
