// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Trim takes out of a volume what no reader of a cache needs, for a cache holds every
// volume of the Kubernetes cluster. It keeps
//
//   - what Read and Record.Write know of: a source that a volume of ours may have, whole,
//     and all annotations but that of kubectl apply;
//   - what ImageKeys reads of other drivers' sources;
//   - what says which volume it is and what is to become of it: names, labels, claim,
//     class, size, policy, phase and finalizers.
//
// It changes pv in place. Trimming a volume again changes nothing.
func Trim(pv *corev1.PersistentVolume) {
	pv.ManagedFields = nil
	// What kubectl apply was given: a second copy of all the rest. Not plain delete,
	// which writes to a map without it, too: a cache may share that already.
	maps.DeleteFunc(pv.Annotations, func(key, _ string) bool { return key == corev1.LastAppliedConfigAnnotation })
	if pv.Spec.RBD != nil {
		return
	}
	pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: trimCSI(pv.Spec.CSI)}
	pv.Spec.NodeAffinity = nil
}

// trimCSI returns what ImageKeys reads of a CSI source, and nil for one that names no
// image.
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
	// Without a pool no image is named.
	if len(attributes) == 0 && !strings.Contains(source.VolumeHandle, "/") && !strings.HasPrefix(source.VolumeHandle, migratedHandle) {
		return nil
	}
	return &corev1.CSIPersistentVolumeSource{Driver: source.Driver, VolumeHandle: source.VolumeHandle, VolumeAttributes: attributes}
}
