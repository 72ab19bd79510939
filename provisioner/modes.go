// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/provisioner/storageclass"
)

// checkModes refuses access modes that volumes with a source can't have.
func checkModes(claim *corev1.PersistentVolumeClaim, source storageclass.Source) []error {
	block := ptr.Deref(claim.Spec.VolumeMode, "") == corev1.PersistentVolumeBlock
	// Kubelet's rbd plugin implements these.
	supported := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany}
	ofPlugin := append(slices.Clone(supported), corev1.ReadWriteOncePod)
	if block {
		// Several nodes at once would ruin a file system.
		ofPlugin = append(ofPlugin, corev1.ReadWriteMany)
	}
	if source == storageclass.SourceCSI {
		supported = ofPlugin
	}
	var refused, more []string
	for _, mode := range claim.Spec.AccessModes {
		if slices.Contains(supported, mode) {
			continue
		}
		refused = append(refused, string(mode))
		if slices.Contains(ofPlugin, mode) {
			more = append(more, string(mode))
		}
	}
	if len(refused) == 0 {
		if source == storageclass.SourceCSI {
			return checkReadOnly(claim, block)
		}
		return nil
	}
	text := fmt.Sprintf("access mode %s is not supported: supported are %s", strings.Join(refused, ", "), listed(supported))
	if len(more) > 0 {
		text += fmt.Sprintf(`; %s needs the node plugin and a StorageClass that gives "volumeSource" as csi`, strings.Join(more, ", "))
	}
	if !block && source == storageclass.SourceCSI && slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteMany) {
		text += ", and ReadWriteMany for spec.volumeMode Block only"
	}
	return []error{errors.New(text)}
}

// checkReadOnly refuses ReadOnlyMany where the node plugin's volume would not be what its
// user means by it: kubelet tells the plugin the first access mode only, and attaching goes by
// all of them.
func checkReadOnly(claim *corev1.PersistentVolumeClaim, block bool) []error {
	modes := claim.Spec.AccessModes
	if !slices.Contains(modes, corev1.ReadOnlyMany) {
		return nil
	}
	if others := slices.DeleteFunc(slices.Clone(modes), func(m corev1.PersistentVolumeAccessMode) bool { return m == corev1.ReadOnlyMany }); len(others) > 0 {
		return []error{fmt.Errorf("access modes ReadOnlyMany and %s on one claim are not supported by the node plugin, "+
			"which maps an image either for reading or for writing: leave out one of them", others[0])}
	}
	empty := claim.Spec.DataSource == nil && claim.Spec.DataSourceRef == nil
	if empty && !block { // a block volume can be filled by whoever has the image
		return []error{errors.New("access mode ReadOnlyMany alone would give a volume without a file system, which nobody could ever write to: " +
			"ask for ReadWriteOnce, or name a claim with the content in spec.dataSource")}
	}
	return nil
}

// setReadWriteManyFirst puts ReadWriteMany in front, since kubelet tells a node plugin the
// first access mode only: with another one, the second node would be refused.
func setReadWriteManyFirst(modes []corev1.PersistentVolumeAccessMode) {
	slices.SortStableFunc(modes, func(a, b corev1.PersistentVolumeAccessMode) int {
		switch {
		case a == b:
			return 0
		case a == corev1.ReadWriteMany:
			return -1
		case b == corev1.ReadWriteMany:
			return 1
		default:
			return 0
		}
	})
}

// listed joins modes, at least two, with commas and a last "and".
func listed(modes []corev1.PersistentVolumeAccessMode) string {
	var text string
	for i, mode := range modes {
		switch {
		case i == len(modes)-1:
			text += " and "
		case i > 0:
			text += ", "
		}
		text += string(mode)
	}
	return text
}
