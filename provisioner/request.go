// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// imagePrefix begins the names of images: ceph-csi recognises migrated volumes by it.
const imagePrefix = "kubernetes-dynamic-pvc-"

// request is what a claim and its class ask for, checked.
type request struct {
	params storageclass.Params
	// csi says that our node plugin is to mount the volume.
	csi bool
	// unfit says why there is to be no volume now; nil for no reason. It is of no interest
	// for a claim that no longer wants one: an image that was made for it goes with a volume.
	unfit error
	// advice is what the claim is to be told once it has its volume.
	advice []access.Event
	// want is the image, but for its pool and its source.
	want image.Wanted
	// sizeBytes is the image's size.
	sizeBytes int64
	// sourceClaim names the claim to clone; empty for none.
	sourceClaim string
}

// newRequest checks class and claim. The error names all faults of the class, or else
// all faults of the claim, in one line. It makes no call but those of Nodes.
func (p *Provisioner) newRequest(ctx context.Context, options controller.ProvisionOptions) (request, error) {
	params, err := storageclass.Parse(options.StorageClass.Parameters)
	if err != nil {
		return request{}, err
	}
	claim := options.PVC
	r := request{params: params}
	mounted, advice, err := p.chooseSource(ctx, params.Source)
	var unfit storageclass.Faults
	if err != nil {
		unfit = storageclass.Faults{err}
	} else {
		unfit = append(params.CheckSource(mounted), checkModes(claim, mounted)...)
	}
	r.csi, r.advice = mounted == storageclass.SourceCSI, advice
	if len(unfit) > 0 {
		// The API server takes such a volume whatever the claim and the class say.
		r.csi, r.unfit = params.Source != storageclass.SourceInTree, unfit
	}

	source, sourceErr := sourceClaim(claim)
	size, sizeErr := volume.ImageSize(claim.Spec.Resources)
	faults := append(storageclass.Faults{sourceErr, sizeErr}, checkClaim(claim)...)
	if faults = slices.DeleteFunc(faults, func(err error) bool { return err == nil }); len(faults) > 0 {
		return request{}, append(faults, unfit...)
	}
	name := imagePrefix + string(claim.UID)
	if p.config.UsePVName {
		name = options.PVName
	}
	r.sizeBytes, r.sourceClaim = size, source
	r.want = image.Wanted{
		Image:     volume.ImageID{Name: name},
		SizeBytes: uint64(size), // #nosec G115 -- ImageSize returns no negative size
		DataPool:  params.Location.DataPool,
		Owner: volume.Owner{Volume: options.PVName, Identity: p.config.Identity, Cluster: p.config.ClusterUID,
			Claim: claim.Name, Namespace: claim.Namespace},
		ClaimUID: string(claim.UID),
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
	if name := ptr.Deref(claim.Spec.VolumeAttributesClassName, ""); name != "" { // or Kubernetes would never bind it
		faults = append(faults, fmt.Errorf("the claim asks for the VolumeAttributesClass %q, but rbd volumes have no such attributes: "+
			"make the claim anew without spec.volumeAttributesClassName", name))
	}
	return faults
}
