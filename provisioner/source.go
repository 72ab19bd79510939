// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const claimKind = "PersistentVolumeClaim"

// sourceClaim returns the name of the claim whose content a claim asks for, or an
// empty one when it asks for none.
func sourceClaim(claim *corev1.PersistentVolumeClaim) (string, error) {
	// The API server writes into the one what it finds in the other, but for
	// kinds that only the second may have, and for other namespaces.
	ref := claim.Spec.DataSourceRef
	if ref == nil {
		if claim.Spec.DataSource == nil {
			return "", nil
		}
		ref = &corev1.TypedObjectReference{APIGroup: claim.Spec.DataSource.APIGroup, Kind: claim.Spec.DataSource.Kind, Name: claim.Spec.DataSource.Name}
	}
	group := ptr.Deref(ref.APIGroup, "")
	if ref.Kind != claimKind || group != corev1.GroupName || ref.Name == "" {
		kind := ref.Kind
		if group != "" {
			kind += "." + group
		}
		return "", fmt.Errorf("the claim asks for the content of %q of kind %q (spec.dataSource or spec.dataSourceRef), which this "+
			"provisioner can't give: name a %s of the same namespace, or make a claim without it", ref.Name, kind, claimKind)
	}
	if namespace := ptr.Deref(ref.Namespace, ""); namespace != "" && namespace != claim.Namespace {
		return "", fmt.Errorf("the claim asks for the content of a claim in namespace %q (spec.dataSourceRef): "+
			"only claims of its own namespace can be cloned", namespace)
	}
	return ref.Name, nil
}

// source is the volume whose content a claim is to get.
type source struct {
	claim  string
	volume string
	record volume.Record
	// capacity is that of the volume.
	capacity resource.Quantity
	// err is what keeps it from being cloned; the rest is not known then.
	err error
}

// what begins errors about it.
func (s *source) what() string { return fmt.Sprintf("its source, claim %q,", s.claim) }

// known reports whether the source's volume is known.
func (s *source) known() bool { return s != nil && s.volume != "" }

// restore takes from the intent of the attempt that made the clone what the source was
// then: it may be gone by now, or another one have its name.
func (s *source) restore(earlier journal.Intent) {
	if earlier.SourceVolume != "" {
		s.volume, s.record.FSType = earlier.SourceVolume, earlier.SourceFSType
		s.capacity = *resource.NewQuantity(earlier.SourceBytes, resource.BinarySI)
	}
}

func (s *source) tooLarge(size resource.Quantity) error {
	return fmt.Errorf("%s has %s, more than the claim requests: request at least that", s.what(), size.String())
}

// findSource reads the claim and the volume that a claim is to be a clone of. No
// call to Ceph is made. source.err says what keeps it from being cloned, and is the
// same until that changes.
func (p *Provisioner) findSource(ctx context.Context, claim *corev1.PersistentVolumeClaim, r request) *source {
	s, err := p.readSource(ctx, claim, r)
	if err != nil {
		return &source{claim: r.sourceClaim, err: err}
	}
	return s
}

func (p *Provisioner) readSource(ctx context.Context, claim *corev1.PersistentVolumeClaim, r request) (*source, error) {
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	s := &source{claim: r.sourceClaim}
	// Not from the cache, which may not know yet that it goes.
	live, err := p.config.Claims.PersistentVolumeClaims(claim.Namespace).Get(ctx, s.claim, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("%s is not in namespace %q: make it, or correct its name in spec.dataSource", s.what(), claim.Namespace)
	case err != nil:
		return nil, fmt.Errorf("read its source, claim %q: %w", s.claim, err)
	case live.DeletionTimestamp != nil:
		return nil, fmt.Errorf("%s is being deleted", s.what())
	case live.Status.Phase == corev1.ClaimLost:
		return nil, fmt.Errorf("%s has lost its volume", s.what())
	case live.Status.Phase != corev1.ClaimBound || live.Spec.VolumeName == "":
		return nil, fmt.Errorf("%s is not bound to a volume yet: it is cloned once it is", s.what())
	}
	pv, err := p.config.VolumeLister.Get(live.Spec.VolumeName)
	if apierrors.IsNotFound(err) || err == nil && (pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != live.UID) {
		// It was bound a moment ago; or somebody deleted the volume by hand.
		return nil, fmt.Errorf("%s has no volume that is bound to it", s.what())
	}
	if err != nil {
		return nil, fmt.Errorf("read the volume of its source, claim %q: %w", s.claim, err)
	}
	s.volume, s.capacity = pv.Name, pv.Spec.Capacity[corev1.ResourceStorage]
	if s.record, err = volume.Read(pv); err != nil || pv.Annotations[volume.AnnProvisionedBy] != p.config.Name || !p.Owns(pv) {
		return nil, fmt.Errorf("%s has a volume that was not made by this provisioner, and so can't be cloned by it", s.what())
	}
	return s, s.check(claim, pv, r)
}

// check compares what the claim and its class ask for with the source.
func (s *source) check(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, r request) error {
	wanted, has := ptr.Deref(claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem), ptr.Deref(pv.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	switch {
	case wanted != has:
		return fmt.Errorf("%s has the volume mode %s: set spec.volumeMode to it", s.what(), has)
	case s.capacity.CmpInt64(r.sizeBytes) > 0:
		return s.tooLarge(s.capacity)
	case s.record.Pool != r.params.Pool:
		return fmt.Errorf("%s is in pool %q: use a StorageClass with that pool, since %q is another one", s.what(), s.record.Pool, r.params.Pool)
	}
	return nil
}
