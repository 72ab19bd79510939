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
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/util"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/volume"
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
	case apierrors.IsNotFound(err), err == nil && live.UID != claim.UID:
		return false, nil
	case err != nil:
		return false, fmt.Errorf("read the claim once more: %w", err)
	case live.Spec.VolumeName == options.PVName:
		return false, &controller.IgnoredError{Reason: "the claim has its volume"}
	}
	return waits(live), nil
}

// waits reports whether a claim still waits for a volume.
func waits(claim *corev1.PersistentVolumeClaim) bool {
	return claim.Spec.VolumeName == "" && claim.DeletionTimestamp == nil
}

// checkUserSecret looks at the secret that nodes will use, so that a mistake shows on
// the claim, not on a Pod that does not start. The claim is to get the events once it has its
// volume. If this may not read a secret that people who make claims look after, one of them
// says what Pods need.
func (p *Provisioner) checkUserSecret(ctx context.Context, claim *corev1.PersistentVolumeClaim, r request) ([]access.Event, error) {
	secret, user := userSecret(claim, r), r.params.User
	ownersSecret := r.params.UserSecret.Namespace == ""
	check := p.config.Access.CheckUserSecret
	if r.csi {
		check = p.config.Access.CheckStageSecret
	}
	events, err := check(ctx, secret, user)
	if errors.Is(err, access.ErrSecretForbidden) {
		// By default the provisioner may read secrets in its own namespace
		// only, and need not read this one.
		if _, logged := p.forbidden.LoadOrStore(secret.Namespace, true); !logged {
			klog.FromContext(ctx).Info("The user's secret is not checked before its use: reading it is not allowed", "secret", secret.String())
		}
		if !ownersSecret {
			return nil, nil
		}
		return []access.Event{{Type: corev1.EventTypeNormal, Reason: "UserSecretNotChecked", Text: fmt.Sprintf(
			"it is not known whether secret %q exists and holds a key, since the provisioner may not read it; "+
				"Pods need it: if it is missing, %s", secret, access.MakeUserSecret(secret, user))}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("user's %w", err)
	}
	return events, nil
}

// userSecret returns the secret with the key that nodes map the image with. Where the class
// names no namespace, kubelet's own plugin takes the Pod's, which is the claim's.
func userSecret(claim *corev1.PersistentVolumeClaim, r request) volume.SecretRef {
	secret := r.params.UserSecret
	if secret.Name != "" && secret.Namespace == "" {
		secret.Namespace = claim.Namespace
	}
	return secret
}

// ShouldProvision reports whether Kubernetes would bind a claim to a new volume: not if it
// has the mark of a bound claim, and so counts as one that lost its volume.
func (*Provisioner) ShouldProvision(_ context.Context, claim *corev1.PersistentVolumeClaim) bool {
	return !metav1.HasAnnotation(claim.ObjectMeta, "pv.kubernetes.io/bind-completed")
}

// Advise tells a claim of ours that waits in vain why, where nobody else does.
func (p *Provisioner) Advise(ctx context.Context, claim *corev1.PersistentVolumeClaim) {
	class, err := p.config.Classes.Get(util.GetPersistentVolumeClaimClass(claim))
	if err != nil || class.Provisioner != p.config.Name || claim.Status.Phase == corev1.ClaimBound {
		return
	}
	switch _, err := p.config.VolumeLister.Get(claim.Spec.VolumeName); {
	case !apierrors.IsNotFound(err): // Kubernetes says what keeps them apart, if anything
	case !p.ShouldProvision(ctx, claim):
		p.config.Events.Event(claim, corev1.EventTypeWarning, "NotBound", "the claim has the annotation pv.kubernetes.io/bind-completed and no volume, "+
			"so Kubernetes has none made: bring its volume back or, if the annotation was copied, make the claim anew without it and without spec.volumeName")
	case claim.Spec.VolumeName != "":
		p.config.Events.Eventf(claim, corev1.EventTypeWarning, "VolumeNotFound", "there is no volume %q, which spec.volumeName asks for: "+
			"make that volume, or make the claim anew without spec.volumeName", claim.Spec.VolumeName)
	}
}
