// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// newVolume returns the volume of an image; from is the source that the image is a
// clone of, where that is known.
func (p *Provisioner) newVolume(options controller.ProvisionOptions, r request, pool *access.Pool, from *image.Source) *corev1.PersistentVolume {
	// Claim and class come from caches, which others read.
	claim, class := options.PVC.DeepCopy(), options.StorageClass.DeepCopy()
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes:                   claim.Spec.AccessModes,
			MountOptions:                  class.MountOptions,
			VolumeMode:                    claim.Spec.VolumeMode,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(r.sizeBytes, resource.BinarySI)},
			PersistentVolumeReclaimPolicy: ptr.Deref(class.ReclaimPolicy, ""),
		},
	}
	fsType := r.params.FSType
	switch {
	case ptr.Deref(claim.Spec.VolumeMode, "") == corev1.PersistentVolumeBlock:
		fsType = ""
	case from != nil && from.Volume != "":
		setFileSystem(pv, from, r.sizeBytes)
		fsType = from.FSType
	}
	record := volume.Record{
		Identity: p.config.Identity,
		Cluster:  p.config.ClusterUID,
		FSID:     pool.ID.FSID,
		Monitors: pool.Monitors.V1,
		Pool:     r.params.Location.Pool,
		Image:    r.want.Image.Name,
		User:     r.params.User,
		// As the class has it: without a namespace, kubelet takes the Pod's.
		UserSecret:     r.params.UserSecret,
		Keyring:        r.params.Keyring,
		FSType:         fsType,
		Admin:          r.params.Location.User,
		AdminSecret:    r.params.Location.Secret,
		TrashRetention: r.params.TrashRetention,
	}
	if r.csi {
		setReadWriteManyFirst(pv.Spec.AccessModes)
		record.CSI, record.MapOptions, record.Keyring = true, r.params.MapOptions.String(), ""
		// A secret for CSI needs a namespace; and nodes resolve names when they map.
		record.UserSecret, record.Monitors = userSecret(claim, r), nil
		for _, m := range r.params.Location.Monitors {
			record.Monitors = append(record.Monitors, m.String())
		}
	}
	record.Write(pv)
	return pv
}

// setFileSystem records in a clone's volume that it has its source's file system.
func setFileSystem(pv *corev1.PersistentVolume, from *image.Source, sizeBytes int64) {
	if from.CapacityBytes < sizeBytes {
		metav1.SetMetaDataAnnotation(&pv.ObjectMeta, volume.AnnFileSystemSize,
			resource.NewQuantity(from.CapacityBytes, resource.BinarySI).String())
	}
	// Linux refuses to mount an XFS that has the UUID of a mounted one, unless told not to
	// look; and a cloned file system has its source's UUID.
	const nouuid = "nouuid"
	if from.FSType == "xfs" && !slices.Contains(pv.Spec.MountOptions, nouuid) {
		pv.Spec.MountOptions = append(pv.Spec.MountOptions, nouuid)
	}
}
