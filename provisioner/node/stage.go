// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/monitors"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// NodeStageVolume implements csi.NodeServer: it maps a volume's image and, unless it is a
// block volume, mounts its file system on the staging path.
func (s *Server) NodeStageVolume(ctx context.Context, r *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if err := checkNamed("volume_id", r.GetVolumeId(), "staging_target_path", r.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	err := s.exclusively(ctx, r.GetVolumeId(), "NodeStageVolume", func(ctx context.Context, o *operation) error {
		v, err := parseStage(r)
		if err == nil {
			err = s.stage(ctx, o, v)
		}
		if err != nil {
			err = s.undo(ctx, o, r.GetVolumeId(), err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// stage does what is still to do: an earlier call may have been cut off anywhere.
func (s *Server) stage(ctx context.Context, o *operation, v volumeRequest) error {
	o.at("the kernel's list of devices")
	d, found, err := s.device(v.handle)
	if err != nil {
		return err
	}
	if found && d.ReadOnly != v.readOnly() {
		// Left by a volume that had another access mode.
		if err := s.unmap(ctx, o, d); err != nil {
			return err
		}
		found = false
	}
	mounts, err := s.table()
	if err != nil {
		return err
	}
	if !found || len(mounts.of(d)) == 0 {
		if d, err = s.deviceFor(ctx, o, v, d, found); err != nil {
			return err
		}
	}
	if v.block {
		return nil
	}
	return s.mountStaged(ctx, o, v, d)
}

// deviceFor returns a device that nobody but this volume writes to: the one that was found,
// which an earlier call has left, or a new one.
func (s *Server) deviceFor(ctx context.Context, o *operation, v volumeRequest, d krbd.Device, found bool) (krbd.Device, error) {
	if err := s.checkForeign(v); err != nil {
		return d, err
	}
	o.at("the name server")
	addresses, err := s.resolve(ctx, v)
	if err != nil {
		return d, err
	}
	if found {
		// This node may have lost its watch since, and another one have mapped the image.
		err := s.checkAlone(ctx, o, v, addresses.All, d)
		if !errors.Is(err, errNoWatch) {
			return d, err
		}
		klog.FromContext(ctx).Info("Mapping anew, since Ceph does not list the watch of the device", "volume", v.handle, "device", d.Path(), "client", d.ClientAddr)
		if err := s.unmap(ctx, o, d); err != nil {
			return d, err
		}
	}
	if _, err := s.isStaged(o, v.staging, nil); err != nil {
		return d, err
	}
	if d, err = s.mapImage(ctx, o, v, addresses); err != nil {
		return d, err
	}
	if err := s.checkAlone(ctx, o, v, addresses.All, d); !errors.Is(err, errNoWatch) {
		return d, err
	}
	return d, s.noWatch(v, d)
}

// checkForeign refuses an image that another program of this node has mapped: kubelet's
// in-tree plugin, or an administrator's rbd map. It may use the device's file itself, and share its
// watch with ours.
func (s *Server) checkForeign(v volumeRequest) error {
	_, others, err := s.devices(v.handle)
	switch {
	case err != nil:
		return err
	case len(others) == 0:
		return nil
	}
	return refused("image %s is mapped on node %s by another program, as %s: unmap it there (rbd unmap %[3]s), and this volume is mapped then",
		v.name(), s.cfg.NodeID, others[0].Path())
}

// undo unmaps what a failed call mapped, unless somebody uses it, and returns the error
// for kubelet. After an error that it takes as final, kubelet forgets the volume: a device
// would stay for ever, and keep all other nodes from the image.
func (s *Server) undo(ctx context.Context, o *operation, handle string, failure error) error {
	if !isFinal(failure) {
		return failure
	}
	d, found, err := s.device(handle)
	if err == nil && found {
		err = s.unmap(ctx, o, d)
	}
	if err == nil {
		return failure
	}
	klog.FromContext(ctx).Info("The image stays mapped after a failure, until kubelet unstages the volume", "volume", handle, "err", err)
	return status.Errorf(codes.Unavailable, "%s; and its image is still mapped: %s", status.Convert(failure).Message(), status.Convert(err).Message())
}

// mapImage maps a volume's image, unless somebody else uses it.
func (s *Server) mapImage(ctx context.Context, o *operation, v volumeRequest, found monitors.Addresses) (krbd.Device, error) {
	protocol := v.options.Protocol()
	addresses := found.Kernel(protocol)
	if len(addresses) == 0 {
		return krbd.Device{}, refused("volume %q: none of its monitors speaks message protocol %s: %s", v.handle, protocol, protocolHint(protocol))
	}
	if err := s.checkUnused(ctx, o, v, found.All); err != nil {
		return krbd.Device{}, err
	}
	o.at("the mapping of the image")
	// Without the caller's deadline: a device that came later would be nobody's. Whoever asks
	// for the volume meanwhile is told to wait.
	d, err := s.cfg.Kernel.Map(context.WithoutCancel(ctx), krbd.Request{
		FSID: v.fsid, Monitors: addresses, User: v.user, Key: v.key, Pool: v.pool, Image: v.image,
		Options: v.options, ReadOnly: v.readOnly(),
	})
	if err != nil {
		return krbd.Device{}, v.explain("node "+s.cfg.NodeID, err)
	}
	s.mapped.Add(1)
	klog.FromContext(ctx).Info("Mapped", "volume", v.handle, "device", d.Path(), "readOnly", d.ReadOnly)
	return d, nil
}

func (s *Server) resolve(ctx context.Context, v volumeRequest) (monitors.Addresses, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CephTimeout)
	defer cancel()
	found, err := monitors.Resolve(ctx, s.cfg.Resolver, v.monitors)
	if err != nil {
		return found, status.Errorf(codes.Unavailable, "volume %q: %s; check the name server of this node", v.handle, oneLine(err))
	}
	for _, err := range found.Unresolved {
		klog.FromContext(ctx).Info("Going on without a monitor", "volume", v.handle, "err", err)
	}
	return found, nil
}

// protocolHint is what to do where no monitor speaks a protocol.
func protocolHint(protocol volume.Protocol) string {
	if protocol == volume.ProtocolV1 {
		return "let them listen on port 6789, too, or give the class the parameter mapOptions: ms_mode=prefer-crc and make the volume anew"
	}
	return "leave ms_mode out of the mapOptions, or name monitors with port 3300"
}

// NodeUnstageVolume implements csi.NodeServer: the way back. kubelet gives no attributes.
func (s *Server) NodeUnstageVolume(ctx context.Context, r *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	handle, staging := r.GetVolumeId(), r.GetStagingTargetPath()
	if err := checkNamed("volume_id", handle, "staging_target_path", staging); err != nil {
		return nil, err
	}
	err := s.exclusively(ctx, handle, "NodeUnstageVolume", func(ctx context.Context, o *operation) error {
		o.at("the kernel's list of devices")
		d, found, err := s.device(handle)
		if err != nil {
			return err
		}
		// While a Pod has the volume, its mount on the staging path is what the next one
		// gets, so it stays, too.
		if found {
			if err := s.checkOnlyAt(staging, d); err != nil {
				return err
			}
		}
		if err := s.unmountAll(o, staging); err != nil || !found {
			return err
		}
		return s.unmap(ctx, o, d)
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// checkOnlyAt refuses if a device is mounted anywhere but at path.
func (s *Server) checkOnlyAt(path string, d krbd.Device) error {
	mounts, err := s.table()
	if err != nil {
		return err
	}
	var others []string
	for _, m := range mounts.of(d) {
		if path == "" || m.MountPoint != escape.Replace(path) {
			others = append(others, m.MountPoint)
		}
	}
	if len(others) == 0 {
		return nil
	}
	return refused("%s (image %s/%s) is still mounted on node %s at %s: will retry; if no Pod uses it any more, unmount it there (umount)",
		d.Path(), d.Pool, d.Image, s.cfg.NodeID, strings.Join(others, ", "))
}

// unmap ends a device that nothing uses.
func (s *Server) unmap(ctx context.Context, o *operation, d krbd.Device) error {
	if err := s.checkOnlyAt("", d); err != nil {
		return err
	}
	o.at("the unmapping of %s", d.Path())
	if err := s.cfg.Kernel.Unmap(context.WithoutCancel(ctx), d.ID); err != nil {
		return aboutDevices("node "+s.cfg.NodeID, err)
	}
	s.mapped.Add(-1)
	klog.FromContext(ctx).Info("Unmapped", "device", d.Path(), "pool", d.Pool, "image", d.Image)
	return nil
}
