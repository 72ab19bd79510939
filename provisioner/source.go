// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

var claimKind = schema.GroupKind{Group: corev1.GroupName, Kind: "PersistentVolumeClaim"}

// sourceClaim names the claim whose content a claim asks for; empty if it asks for none.
func sourceClaim(claim *corev1.PersistentVolumeClaim) (string, error) {
	// The API server copies dataSource and dataSourceRef into each other, except for
	// kinds that only dataSourceRef may have, and for other namespaces.
	ref := claim.Spec.DataSourceRef
	if ref == nil {
		if claim.Spec.DataSource == nil {
			return "", nil
		}
		ref = &corev1.TypedObjectReference{APIGroup: claim.Spec.DataSource.APIGroup, Kind: claim.Spec.DataSource.Kind, Name: claim.Spec.DataSource.Name}
	}
	kind := schema.GroupKind{Group: ptr.Deref(ref.APIGroup, ""), Kind: ref.Kind}
	if kind != claimKind || ref.Name == "" {
		return "", fmt.Errorf("the claim asks for the content of %q of kind %q (spec.dataSource or spec.dataSourceRef), which this "+
			"provisioner can't give: name a %s of the same namespace, or make a claim without it", ref.Name, kind, claimKind)
	}
	if namespace := ptr.Deref(ref.Namespace, ""); namespace != "" && namespace != claim.Namespace {
		return "", fmt.Errorf("the claim asks for the content of a claim in namespace %q (spec.dataSourceRef): "+
			"only claims of its own namespace can be cloned", namespace)
	}
	return ref.Name, nil
}

// cloneSource returns the volume whose content a claim asks for, or nil if it asks for
// none. It makes no call to Ceph. For a claim that no longer wants its volume, only the
// source's claim is known. Its Err stays the same for as long as the reason does.
func (p *Provisioner) cloneSource(ctx context.Context, claim *corev1.PersistentVolumeClaim, r request, wanted bool) *image.Source {
	if r.sourceClaim == "" {
		return nil
	}
	s := &image.Source{Claim: r.sourceClaim}
	if !wanted {
		return s
	}
	pv, err := p.sourceVolume(ctx, claim, s)
	if err == nil {
		err = p.readSource(claim, pv, r, s)
	}
	s.Err = err
	return s
}

// sourceVolume returns the volume of a source's claim.
func (p *Provisioner) sourceVolume(ctx context.Context, claim *corev1.PersistentVolumeClaim, s *image.Source) (*corev1.PersistentVolume, error) {
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	// Not from the cache, which may not know yet that the claim is being deleted.
	live, err := p.config.Claims.PersistentVolumeClaims(claim.Namespace).Get(ctx, s.Claim, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%s is not in namespace %q: make it, or correct its name in spec.dataSource", s, claim.Namespace)
	case err != nil:
		return nil, fmt.Errorf("read its source, claim %q: %w", s.Claim, err)
	case live.DeletionTimestamp != nil:
		return nil, fmt.Errorf("%s is being deleted", s)
	case live.Status.Phase == corev1.ClaimLost:
		return nil, fmt.Errorf("%s has lost its volume", s)
	case live.Status.Phase != corev1.ClaimBound || live.Spec.VolumeName == "":
		return nil, fmt.Errorf("%s is not bound to a volume yet: it will be cloned once it is bound", s)
	}
	pv, err := p.config.VolumeLister.Get(live.Spec.VolumeName)
	if apierrors.IsNotFound(err) || err == nil && (pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != live.UID) {
		// The claim was bound a moment ago, or someone deleted the volume by hand.
		return nil, fmt.Errorf("%s has no volume that is bound to it", s)
	}
	if err != nil {
		return nil, fmt.Errorf("read the volume of its source, claim %q: %w", s.Claim, err)
	}
	return pv, nil
}

// readSource fills in s from the source's volume, and compares it with claim and class.
func (p *Provisioner) readSource(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, r request, s *image.Source) error {
	record, err := volume.Read(pv)
	if err != nil || !p.made(pv) {
		return fmt.Errorf("%s has a volume that was not made by this provisioner, and so can't be cloned by it", s)
	}
	capacity := pv.Spec.Capacity[corev1.ResourceStorage]
	s.Volume, s.Image, s.FSID = pv.Name, record.Image, record.FSID
	s.FSType, s.CapacityBytes = record.FSType, capacity.Value()
	wanted, has := ptr.Deref(claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem), ptr.Deref(pv.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	switch {
	case wanted != has:
		return fmt.Errorf("%s has the volume mode %s: set spec.volumeMode to it", s, has)
	case s.CapacityBytes > r.sizeBytes:
		return s.TooLarge(s.CapacityBytes)
	case r.csi && has == corev1.PersistentVolumeFilesystem && s.FSType != "" && !volume.IsFileSystem(s.FSType):
		return fmt.Errorf("%s has the file system %s, which the node plugin can't mount (it mounts %s): copy its files to a volume "+
			`without spec.dataSource or, up to Kubernetes 1.30, use a StorageClass that gives "volumeSource" as rbd`,
			s, s.FSType, strings.Join(volume.FileSystems(), ", "))
	case record.Pool != r.params.Location.Pool:
		return fmt.Errorf("%s is in pool %q: use a StorageClass with that pool, since %q is another one", s, record.Pool, r.params.Location.Pool)
	}
	return nil
}
