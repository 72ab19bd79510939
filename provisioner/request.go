// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// imagePrefix begins the names of images; ceph-csi recognises migrated volumes
// by it.
const imagePrefix = "kubernetes-dynamic-pvc-"

// supportedModes are the access modes that kubelet's rbd plugin implements.
var supportedModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany}

// request is what a claim and its class ask for, checked. Making one calls no server.
type request struct {
	params    storageclass.Params
	pvName    string
	image     string
	sizeBytes int64
	// userSecret always has a namespace: where the class names none, kubelet takes the
	// Pod's, which is the claim's.
	userSecret volume.SecretRef
	fsType     string
	// sourceClaim names the claim to clone; empty for none.
	sourceClaim string
	claimUID    string
}

// wants returns the requested image, with its owner and, for a clone, its source.
func (r request) wants(pool *access.Pool, owner volume.Owner, from *image.Source) image.Wanted {
	return image.Wanted{
		Image:     pool.ID.Image(r.image),
		SizeBytes: uint64(r.sizeBytes), // #nosec G115 -- ImageSize returns no negative size
		DataPool:  r.params.DataPool,
		Owner:     owner,
		ClaimUID:  r.claimUID,
		Source:    from,
	}
}

// newRequest checks class and claim. The error names all faults of the class, or else
// all faults of the claim, in one line.
func (p *Provisioner) newRequest(options controller.ProvisionOptions) (request, error) {
	params, err := storageclass.Parse(options.StorageClass.Parameters)
	if err != nil {
		return request{}, err
	}
	claim := options.PVC
	r := request{
		params:     params,
		pvName:     options.PVName,
		image:      imagePrefix + string(claim.UID),
		userSecret: params.UserSecret,
		fsType:     params.FSType,
		claimUID:   string(claim.UID),
	}
	if p.config.UsePVName {
		r.image = options.PVName
	}
	if r.userSecret.Namespace == "" {
		r.userSecret.Namespace = claim.Namespace
	}
	if mode := claim.Spec.VolumeMode; mode != nil && *mode == corev1.PersistentVolumeBlock {
		r.fsType = ""
	}
	var faults storageclass.Faults
	if r.sourceClaim, err = sourceClaim(claim); err != nil {
		faults = append(faults, err)
	}
	r.sizeBytes, err = volume.ImageSize(claim.Spec.Resources)
	if err != nil {
		faults = append(faults, err)
	}
	if faults = append(faults, checkClaim(claim)...); len(faults) > 0 {
		return request{}, faults
	}
	return r, nil
}

// checkClaim refuses claims that would otherwise get an empty or unfit volume.
func checkClaim(claim *corev1.PersistentVolumeClaim) []error {
	var faults []error
	if claim.Spec.Selector != nil {
		faults = append(faults, errors.New("the claim has a selector, which volumes made on demand can't match: "+
			"remove spec.selector, or name an existing volume in spec.volumeName"))
	}
	var refused []string
	for _, mode := range claim.Spec.AccessModes {
		if !slices.Contains(supportedModes, mode) {
			refused = append(refused, string(mode))
		}
	}
	if len(refused) > 0 {
		faults = append(faults, fmt.Errorf("access mode %s is not supported: supported are %s and %s",
			strings.Join(refused, ", "), supportedModes[0], supportedModes[1]))
	}
	return faults
}
