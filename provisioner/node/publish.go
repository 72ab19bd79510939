// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/mount-utils"

	"ceph.com/rbd-provisioner/provisioner/krbd"
)

// publication is a staged volume to be given to a Pod.
type publication struct {
	access
	handle, staging, target string
	// noWrites says that the Pod may only read.
	noWrites bool
}

// NodePublishVolume implements csi.NodeServer: it gives a Pod a staged volume, by a bind
// mount of the staging path or, for a block volume, of the device's file.
func (s *Server) NodePublishVolume(ctx context.Context, r *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	p := publication{handle: r.GetVolumeId(), staging: r.GetStagingTargetPath(), target: r.GetTargetPath(), noWrites: r.GetReadonly()}
	if err := checkNamed("volume_id", p.handle, "target_path", p.target, "staging_target_path", p.staging); err != nil {
		return nil, err
	}
	var err error
	if p.access, err = parseAccess(r.GetVolumeCapability()); err != nil {
		return nil, err
	}
	p.noWrites = p.noWrites || p.readOnly()
	err = s.exclusively(ctx, p.handle, "NodePublishVolume", func(_ context.Context, o *operation) error {
		return s.publish(o, p)
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (s *Server) publish(o *operation, p publication) error {
	d, found, err := s.device(p.handle)
	if err != nil {
		return err
	}
	mounts, err := s.table()
	if err != nil {
		return err
	}
	if !found {
		return refused("volume %q is not mapped on node %s: it must be staged first; if that does not happen by itself, delete the Pod", p.handle, s.cfg.NodeID)
	}
	source, isOurs := p.staging, isFileSystem
	if p.block {
		source, isOurs = d.Path(), isFile
	}
	if m, mounted := mounts.at(p.target); mounted {
		if !isOurs(m, d) {
			return status.Errorf(codes.AlreadyExists, "something else (%s) is mounted at %s on node %s: unmount it there, or delete the Pod", m.Source, p.target, s.cfg.NodeID)
		}
		if p.block || !p.noWrites || slices.Contains(m.MountOptions, "ro") {
			return nil
		}
		// A plugin died between the two steps of a read-only bind mount. No Pod has it yet.
		if err := s.unmountAll(o, p.target); err != nil {
			return err
		}
		if mounts, err = s.table(); err != nil {
			return err
		}
	}
	if p.block {
		if p.noWrites && !d.ReadOnly {
			return refused("volume %q: a block device can be read-only only in a volume with the access mode ReadOnlyMany: set readOnly to false", p.handle)
		}
	} else if staged, mounted := mounts.at(p.staging); !mounted || !isFileSystem(staged, d) {
		return refused("volume %q is not mounted at %s: it must be staged first; if that does not happen by itself, delete the Pod", p.handle, p.staging)
	}
	if err := s.checkSingle(p, d, mounts); err != nil {
		return err
	}
	if err := makeTarget(p.target, p.block); err != nil {
		return internal("make the target path", err)
	}
	// Options of the file system hold where it is staged, and bind mounts inherit those
	// that each mount has for itself.
	options := []string{"bind"}
	if p.noWrites && !p.block { // to the mount of a device's file it would mean nothing
		options = append(options, "ro")
		options = append(options, keptFlags(mounts, p.staging)...)
	}
	o.at("the bind mount at %s", p.target)
	if err := s.cfg.Mounts.Mount(source, p.target, "", options); err != nil {
		return internal("mount "+source+" at "+p.target, err)
	}
	return nil
}

// keptFlags returns what a mount has for itself, and not its file system. A bind mount
// inherits it, and loses what is not named when it is made read-only.
func keptFlags(mounts table, path string) []string {
	m, _ := mounts.at(path)
	return slices.DeleteFunc(slices.Clone(m.MountOptions), func(option string) bool { return !slices.Contains(mountFlags, option) })
}

// mountFlags are what mount(8) and the kernel's table call them; without the default, relatime.
var mountFlags = []string{"nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"}

// checkSingle refuses a second Pod for a volume that is for one at a time.
func (s *Server) checkSingle(p publication, d krbd.Device, mounts table) error {
	if p.mode != csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER {
		return nil
	}
	others := slices.DeleteFunc(mounts.of(d), func(m mount.MountInfo) bool {
		return m.MountPoint == escape.Replace(filepath.Clean(p.staging))
	})
	if len(others) == 0 {
		return nil
	}
	return refused("volume %q is for one Pod at a time (ReadWriteOncePod), and is mounted at %s: will retry until that Pod is gone", p.handle, paths(others))
}

// makeTarget makes what is mounted upon. kubelet has made the folder above it.
func makeTarget(path string, file bool) error {
	if !file {
		return os.MkdirAll(path, 0o750)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// NodeUnpublishVolume implements csi.NodeServer. It looks at nothing below the target
// path, which may be the mount of a file system that hangs, or of one whose device is gone.
func (s *Server) NodeUnpublishVolume(ctx context.Context, r *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	handle, target := r.GetVolumeId(), r.GetTargetPath()
	if err := checkNamed("volume_id", handle, "target_path", target); err != nil {
		return nil, err
	}
	err := s.exclusively(ctx, handle, "NodeUnpublishVolume", func(_ context.Context, o *operation) error {
		if err := s.unmountAll(o, target); err != nil {
			return err
		}
		// Never what is below it: if the mount went meanwhile, that is a Pod's data.
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return internal("remove the target path", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
