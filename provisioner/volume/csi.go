// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// CSIDriver is the name of our node plugin, which mounts volumes with a CSI source. Such
// names are DNS subdomains, so it can't be that of the provisioner.
const CSIDriver = "rbd.ceph.com"

// The attributes of a volume with a CSI source of ours: all that a node needs to map the
// image, but for the key.
const (
	// AttrMonitors are monitors as ParseMonitors reads them. Names stay names: nodes resolve
	// them when they map.
	AttrMonitors = "monitors"
	AttrPool     = "pool"
	AttrImage    = "image"
	// AttrUser is the Ceph user that maps the image, without "client.". The volume's
	// nodeStageSecretRef has its key.
	AttrUser = "user"
	// AttrMapOptions are as ParseMapOptions reads them; absent for none.
	AttrMapOptions = "mapOptions"
)

// maxHandle is how many bytes CSI allows for a volume's handle.
const maxHandle = 128

// CSIHandle returns the handle of the volume with that image: "FSID/POOL/IMAGE". CSI wants
// it to be unique within the driver, and two Ceph clusters of one Kubernetes may have the
// same pools and, mirrored, the same images. A node finds a volume's device by it, which is all that
// kubelet tells when it unmounts. Names that would make it too long are replaced by their
// digest.
func CSIHandle(fsid, pool, image string) string {
	handle := fsid + "/" + ImageKey(pool, image)
	if len(handle) > maxHandle {
		handle = fmt.Sprintf("%s/%s/%s", fsid, digest(pool)[:16], image)
	}
	if len(handle) > maxHandle {
		handle = fsid + "/" + digest(ImageKey(pool, image))
	}
	return handle
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// csi returns the source for our node plugin.
func (r Record) csi() corev1.PersistentVolumeSource {
	attributes := map[string]string{
		AttrMonitors:   strings.Join(r.Monitors, ","),
		AttrPool:       r.Pool,
		AttrImage:      r.Image,
		AttrUser:       r.User,
		AttrMapOptions: r.MapOptions,
	}
	maps.DeleteFunc(attributes, func(_, value string) bool { return value == "" })
	return corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
		Driver:             CSIDriver,
		VolumeHandle:       CSIHandle(r.FSID, r.Pool, r.Image),
		VolumeAttributes:   attributes,
		FSType:             r.FSType,
		NodeStageSecretRef: r.userSecret(),
	}}
}

// isCSI reports whether our node plugin mounts a volume.
func isCSI(pv *corev1.PersistentVolume) bool {
	return pv.Spec.CSI != nil && pv.Spec.CSI.Driver == CSIDriver
}

func readCSI(source *corev1.CSIPersistentVolumeSource) (Record, error) {
	r := Record{
		CSI:        true,
		Pool:       source.VolumeAttributes[AttrPool],
		Image:      source.VolumeAttributes[AttrImage],
		User:       source.VolumeAttributes[AttrUser],
		UserSecret: toSecretRef(source.NodeStageSecretRef),
		MapOptions: source.VolumeAttributes[AttrMapOptions],
		FSType:     source.FSType,
	}
	monitors := source.VolumeAttributes[AttrMonitors]
	if r.Image == "" || r.Pool == "" || monitors == "" {
		return Record{}, errors.New("the volume's CSI source names no monitors, pool or image in its volumeAttributes")
	}
	r.Monitors = strings.Split(monitors, ",")
	return r, nil
}
