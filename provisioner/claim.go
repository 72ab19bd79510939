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

// stillWanted looks at the claim once more, since the library's copy may be old after an
// unclear outcome. It returns an IgnoredError when the claim already has this very volume,
// and false when the claim is gone, is being deleted, or has another one.
//
// Where the cache shows the claim waiting, and the volume is to be deleted with its claim,
// it does not ask the API server: should the cache lag behind, Kubernetes releases and
// deletes the unwanted volume.
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
// the claim, not on a Pod that does not start. If it may not read a secret that people
// who make claims look after, advice says what Pods need.
func (p *Provisioner) checkUserSecret(ctx context.Context, claim *corev1.PersistentVolumeClaim, r request) (advice string, err error) {
	secret := r.params.UserSecret
	if secret.Namespace == "" {
		secret.Namespace = claim.Namespace // kubelet takes the Pod's, which is the claim's
		advice = fmt.Sprintf("it is not known whether secret %q exists and holds a key, since the provisioner may not read it; "+
			"Pods need it: if it is missing, %s", secret, access.MakeUserSecret(secret, r.params.User))
	}
	warning, err := p.config.Access.CheckUserSecret(ctx, secret)
	if errors.Is(err, access.ErrSecretForbidden) {
		// By default the provisioner may read secrets in its own namespace
		// only, and need not read this one.
		if _, logged := p.forbidden.LoadOrStore(secret.Namespace, true); !logged {
			klog.FromContext(ctx).Info("The user's secret is not checked before its use: reading it is not allowed",
				"secret", secret.String())
		}
		return advice, nil
	}
	if err != nil {
		return "", fmt.Errorf("user's %w", err)
	}
	if warning != "" {
		p.config.Events.Event(claim, corev1.EventTypeWarning, "UserSecretType", warning)
	}
	return "", nil
}
