// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
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
