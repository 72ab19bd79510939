// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/wait"

	"ceph.com/rbd-provisioner/provisioner/krbd"
)

const (
	// sizeTimeout is how long a device may take to show the size of its image: the
	// kernel learns it by a notification, within a second as a rule.
	sizeTimeout = 30 * time.Second
	sizePoll    = 250 * time.Millisecond
)

// NodeExpandVolume implements csi.NodeServer: it grows a file system to the size of its
// device. The provisioner has grown the image.
func (s *Server) NodeExpandVolume(ctx context.Context, r *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	handle, path := r.GetVolumeId(), r.GetVolumePath()
	if err := checkNamed("volume_id", handle, "volume_path", path); err != nil {
		return nil, err
	}
	var d krbd.Device
	err := s.exclusively(ctx, handle, "NodeExpandVolume", func(ctx context.Context, o *operation) (err error) {
		if d, err = s.sizedDevice(ctx, o, handle, r.GetCapacityRange().GetRequiredBytes()); err != nil {
			return err
		}
		mounts, err := s.table()
		if err != nil {
			return err
		}
		// In Kubernetes the path is that of a Pod, or the staging path.
		m, mounted := mounts.at(path)
		if r.GetVolumeCapability().GetBlock() != nil || mounted && isFile(m, d) {
			return nil
		}
		if !mounted || !isFileSystem(m, d) {
			return status.Errorf(codes.NotFound, "volume %q is not mounted at %s on node %s", handle, path, s.cfg.NodeID)
		}
		// mountOptions: [ro]. A file system that stopped writing after an error was mounted to
		// be written to, and fails below.
		if slices.Contains(m.MountOptions, "ro") && slices.Contains(m.SuperOptions, "ro") && !isRemountedReadOnly(mounts, d) {
			return nil
		}
		return s.grow(o, d, path)
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: int64(d.SizeBytes)}, nil //nolint:gosec // no image is that large
}

// sizedDevice returns a volume's device once it has the size.
func (s *Server) sizedDevice(ctx context.Context, o *operation, handle string, sizeBytes int64) (d krbd.Device, err error) {
	o.at("the kernel to notice the new size")
	waitErr := wait.PollUntilContextTimeout(ctx, sizePoll, sizeTimeout, true, func(context.Context) (bool, error) {
		var found bool
		if d, found, err = s.device(handle); err == nil && !found {
			err = status.Errorf(codes.NotFound, "volume %q is not mapped on node %s", handle, s.cfg.NodeID)
		}
		return err == nil && int64(d.SizeBytes) >= sizeBytes, err //nolint:gosec // no image is that large
	})
	switch {
	case err != nil:
		return d, err
	case waitErr != nil:
		return d, status.Errorf(codes.DeadlineExceeded, "%s (image %s/%s) has %d bytes on node %s, and is to have %d: will retry; "+
			"if rbd info shows the new size, the node no longer hears from Ceph: check ceph -s and its network", d.Path(), d.Pool, d.Image, d.SizeBytes, s.cfg.NodeID, sizeBytes)
	}
	return d, nil
}
