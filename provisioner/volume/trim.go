// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Trim removes from a volume what no reader of the cache needs, because the cache holds
// every volume of the Kubernetes cluster. It keeps
//
//   - what Read and Record.Write use: the whole source of ours, and all annotations except
//     that of kubectl apply;
//   - what ImageKeys reads from other drivers' sources;
//   - what identifies a volume and decides its future: names, claim, class, policy, phase
//     and finalizers; of a volume with a source that Read knows also its size and mode.
//
// It changes pv in place. Trimming a volume again changes nothing.
func Trim(pv *corev1.PersistentVolume) {
	pv.ManagedFields, pv.Labels = nil, nil
	pv.Spec.AccessModes, pv.Spec.MountOptions = nil, nil
	// kubectl apply keeps a second copy of everything here.
	delete(pv.Annotations, corev1.LastAppliedConfigAnnotation)
	if HasSource(pv) {
		return
	}
	pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: trimCSI(pv.Spec.CSI)}
	pv.Spec.Capacity, pv.Spec.VolumeMode, pv.Spec.NodeAffinity = nil, nil, nil
}

// trimCSI returns what ImageKeys reads from a CSI source, or nil if that names no image.
func trimCSI(source *corev1.CSIPersistentVolumeSource) *corev1.CSIPersistentVolumeSource {
	if source == nil {
		return nil
	}
	attributes := map[string]string{}
	for key, value := range source.VolumeAttributes {
		if isPoolAttribute(key) || isImageAttribute(key) || isNamespaceAttribute(key) {
			attributes[key] = value
		}
	}
	// Without a pool, the source names no image.
	if len(attributes) == 0 && !strings.Contains(source.VolumeHandle, "/") && !strings.HasPrefix(source.VolumeHandle, migratedHandle) {
		return nil
	}
	return &corev1.CSIPersistentVolumeSource{Driver: source.Driver, VolumeHandle: source.VolumeHandle, VolumeAttributes: attributes}
}
