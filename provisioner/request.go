// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// imagePrefix begins the names of images: ceph-csi recognises migrated volumes by it.
const imagePrefix = "kubernetes-dynamic-pvc-"

// supportedModes are the access modes that kubelet's rbd plugin implements.
var supportedModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany}

// request is what a claim and its class ask for, checked. Making one calls no server.
type request struct {
	params storageclass.Params
	// want is the image, but for its pool and its source.
	want image.Wanted
	// sizeBytes is the image's size.
	sizeBytes int64
	// sourceClaim names the claim to clone; empty for none.
	sourceClaim string
}

// newRequest checks class and claim. The error names all faults of the class, or else
// all faults of the claim, in one line.
func (p *Provisioner) newRequest(options controller.ProvisionOptions) (request, error) {
	params, err := storageclass.Parse(options.StorageClass.Parameters)
	if err != nil {
		return request{}, err
	}
	claim := options.PVC
	source, sourceErr := sourceClaim(claim)
	size, sizeErr := volume.ImageSize(claim.Spec.Resources)
	faults := append(storageclass.Faults{sourceErr, sizeErr}, checkClaim(claim)...)
	if faults = slices.DeleteFunc(faults, func(err error) bool { return err == nil }); len(faults) > 0 {
		return request{}, faults
	}
	name := imagePrefix + string(claim.UID)
	if p.config.UsePVName {
		name = options.PVName
	}
	want := image.Wanted{
		Image:     volume.ImageID{Name: name},
		SizeBytes: uint64(size), // #nosec G115 -- ImageSize returns no negative size
		DataPool:  params.Location.DataPool,
		Owner: volume.Owner{Volume: options.PVName, Identity: p.config.Identity, Cluster: p.config.ClusterUID,
			Claim: claim.Name, Namespace: claim.Namespace},
		ClaimUID: string(claim.UID),
	}
	return request{params, want, size, source}, nil
}

// checkClaim refuses claims that would otherwise get an empty or unfit volume.
func checkClaim(claim *corev1.PersistentVolumeClaim) []error {
	var faults []error
	if claim.Spec.Selector != nil {
		faults = append(faults, errors.New("the claim has a selector, which volumes made on demand can't match: "+
			"remove spec.selector, or name an existing volume in spec.volumeName"))
	}
	if name := ptr.Deref(claim.Spec.VolumeAttributesClassName, ""); name != "" { // or Kubernetes would never bind it
		faults = append(faults, fmt.Errorf("the claim asks for the VolumeAttributesClass %q, but rbd volumes have no such attributes: "+
			"make the claim anew without spec.volumeAttributesClassName", name))
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
