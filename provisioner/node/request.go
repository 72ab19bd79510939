// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// volumeRequest is a volume to be staged, checked as far as possible without a call.
type volumeRequest struct {
	handle, fsid, pool, image, user string
	monitors                        []volume.Monitor
	options                         volume.MapOptions
	key                             rbd.Key
	access
	staging string
}

// access is how a volume is used.
type access struct {
	mode  csi.VolumeCapability_AccessMode_Mode
	block bool
	// fsType is empty if the volume says none.
	fsType string
	flags  []string
}

// name returns "POOL/IMAGE".
func (v volumeRequest) name() string { return v.pool + "/" + v.image }

// readOnly reports whether nobody may write to the volume, so that its image is mapped
// read-only.
func (a access) readOnly() bool {
	return a.mode == csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY ||
		a.mode == csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
}

// shared reports whether several nodes may write to the volume at once.
func (a access) shared() bool {
	return a.mode == csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
}

// keyEntry is the entry of the secret with the user's key.
const keyEntry = "key"

const (
	ext4 = volume.Ext4
	xfs  = volume.XFS
	// defaultFileSystem is for volumes that say none.
	defaultFileSystem = ext4
)

// parseStage checks a request.
func parseStage(r *csi.NodeStageVolumeRequest) (v volumeRequest, err error) {
	if err := checkNamed("volume_id", r.GetVolumeId(), "staging_target_path", r.GetStagingTargetPath()); err != nil {
		return v, err
	}
	v.handle, v.staging = r.GetVolumeId(), r.GetStagingTargetPath()
	if v.access, err = parseAccess(r.GetVolumeCapability()); err != nil {
		return v, err
	}
	if v, err = v.withAttributes(r.GetVolumeContext()); err != nil {
		return v, err
	}
	text, found := r.GetSecrets()[keyEntry]
	if !found {
		return v, invalid("volume %q: the secret of its nodeStageSecretRef has no entry %q: put the key of user %q there, as ceph auth get-key client.%s prints it",
			v.handle, keyEntry, v.user, v.user)
	}
	// People make secrets with echo, which ends in a new line.
	if v.key, err = rbd.ParseKey(strings.TrimSpace(text)); err != nil {
		return v, invalid("volume %q: the entry %q of the secret of its nodeStageSecretRef: %s: put the key of user %q there, as ceph auth get-key client.%s prints it",
			v.handle, keyEntry, err, v.user, v.user)
	}
	return v, nil
}

// withAttributes reads what the provisioner, or whoever writes a volume by hand, put into
// volumeAttributes.
func (v volumeRequest) withAttributes(attributes map[string]string) (_ volumeRequest, err error) {
	for _, a := range []struct {
		name string
		to   *string
	}{{volume.AttrPool, &v.pool}, {volume.AttrImage, &v.image}, {volume.AttrUser, &v.user}} {
		if *a.to = attributes[a.name]; *a.to == "" {
			return v, invalid("volume %q: its volumeAttributes have no %q", v.handle, a.name)
		}
		if strings.ContainsFunc(*a.to, func(r rune) bool { return r <= ' ' || r == 0x7f || r == ',' && a.name == volume.AttrUser }) {
			return v, invalid("volume %q: the attribute %q has a character that Linux's rbd driver can't be given", v.handle, a.name)
		}
	}
	if v.monitors, err = volume.ParseMonitors(attributes[volume.AttrMonitors]); err != nil {
		return v, invalid("volume %q: attribute %q: %s", v.handle, volume.AttrMonitors, oneLine(err))
	}
	if len(v.monitors) == 0 {
		return v, invalid("volume %q: its volumeAttributes have no %q", v.handle, volume.AttrMonitors)
	}
	if v.options, err = volume.ParseMapOptions(attributes[volume.AttrMapOptions]); err != nil {
		return v, invalid("volume %q: attribute %q: %s", v.handle, volume.AttrMapOptions, oneLine(err))
	}
	var found bool
	if v.fsid, _, found = strings.Cut(v.handle, "/"); !found || volume.CSIHandle(v.fsid, v.pool, v.image) != v.handle {
		return v, invalid("volume %q: its volumeHandle must be %q, with what ceph fsid prints in front: the image's device is found by it",
			v.handle, volume.CSIHandle("FSID", v.pool, v.image))
	}
	return v, nil
}

// parseAccess checks how a volume is to be used.
func parseAccess(c *csi.VolumeCapability) (a access, err error) {
	a.mode = c.GetAccessMode().GetMode()
	switch {
	case c.GetBlock() != nil:
		a.block = true
	case c.GetMount() != nil:
		a.fsType = strings.ToLower(c.GetMount().GetFsType())
		a.flags = c.GetMount().GetMountFlags()
	default:
		return a, invalid("the volume capability says neither block nor mount")
	}
	if a.fsType != "" && !volume.IsFileSystem(a.fsType) {
		return a, invalid("the file system %q is not supported: the volume's fsType, or its class's, must be one of %s", a.fsType, strings.Join(volume.FileSystems(), ", "))
	}
	switch a.mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER,
		csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
		return a, nil
	case csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER:
		if a.block {
			return a, nil
		}
		return a, invalid("a file system can't have writers on several nodes: take volumeMode Block for ReadWriteMany")
	default:
		return a, invalid("the access mode %s is not supported", a.mode)
	}
}

// checkNamed takes pairs of a field's name and its value, which must not be empty.
func checkNamed(pairs ...string) error {
	for pair := range slices.Chunk(pairs, 2) {
		if pair[1] == "" {
			return invalid("the request has no %s", pair[0])
		}
	}
	return nil
}

// device returns the device of a volume, unless another program mapped it.
func (s *Server) device(handle string) (krbd.Device, bool, error) {
	ours, _, err := s.devices(handle)
	if err != nil || len(ours) == 0 {
		return krbd.Device{}, false, err
	}
	return ours[0], true, nil
}

// devices returns the devices of a volume's image that we mapped, and those that other
// programs did. Those of snapshots and of RADOS namespaces are others' doing, and of no
// volume.
func (s *Server) devices(handle string) (ours, others []krbd.Device, err error) {
	devices, err := s.allDevices()
	for _, d := range devices {
		switch {
		case handleOf(d) != handle:
		case d.Ours:
			ours = append(ours, d)
		default:
			others = append(others, d)
		}
	}
	return ours, others, err
}

func (s *Server) allDevices() ([]krbd.Device, error) {
	devices, err := s.cfg.Kernel.Devices()
	// Without a driver there are none. A node that has lost it, as by a reboot, must still
	// let go of volumes; mapping says what is missing.
	if err != nil && !errors.Is(err, krbd.ErrNoDriver) {
		return nil, aboutDevices("list the images that are mapped on node "+s.cfg.NodeID, err)
	}
	s.mapped.Store(int64(len(devices)))
	return devices, nil
}

// handleOf returns the handle of the volume whose device it is, or "".
func handleOf(d krbd.Device) string {
	if d.Namespace != "" || d.Snapshot != "" {
		return ""
	}
	return volume.CSIHandle(d.FSID, d.Pool, d.Image)
}
