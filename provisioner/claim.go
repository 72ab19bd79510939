// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
)

// reasonUserSecret is the reason of the event about a secret of which kubelet may take
// the wrong entry.
const reasonUserSecret = "UserSecretType"

// stillWanted looks at the claim once more, since the library's copy may be from its
// memory, as it is after an unclear outcome. It returns an IgnoredError when the claim
// already has this very volume, and false when the claim is gone, is being deleted, or
// has another one.
//
// It trusts a cache that shows the claim waiting if the volume is to be deleted with
// its claim: when the cache lags behind, Kubernetes releases and deletes the unwanted
// volume. With another policy it would stay. In all other cases it asks the API server.
func (p *Provisioner) stillWanted(ctx context.Context, options controller.ProvisionOptions) (bool, error) {
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

// waits reports whether a claim still waits for a volume.
func waits(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil
}

// checkUserSecret looks at the secret that kubelet will use, so that a mistake shows on
// the claim, not on a Pod that does not start.
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
