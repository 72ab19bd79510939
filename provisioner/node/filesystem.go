// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"os"
	"slices"

	"k8s.io/mount-utils"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// mountStaged mounts a volume's file system on its staging path, and makes one if the
// image is empty.
func (s *Server) mountStaged(ctx context.Context, o *operation, v volumeRequest, d krbd.Device) error {
	mounted, err := s.isStaged(o, v.staging, &d)
	if err != nil {
		return err
	}
	made := false
	if !mounted {
		if made, err = s.formatAndMount(ctx, o, v, d); err != nil {
			return err
		}
	}
	if made || v.readOnly() || slices.Contains(v.flags, "ro") {
		return nil // nothing to grow, or nothing that may be changed
	}
	// A clone has the file system of its source, and a volume may have grown meanwhile.
	return s.grow(o, d, v.staging)
}

// isStaged reports whether a device is mounted on its staging path already. Of a nil device,
// which is about to be mapped, it can't be: what is there may have the number that it gets.
func (s *Server) isStaged(o *operation, staging string, d *krbd.Device) (bool, error) {
	mounts, err := s.table()
	if err != nil {
		return false, err
	}
	m, mounted := mounts.at(staging)
	if !mounted || d != nil && isFileSystem(m, *d) {
		return mounted, nil
	}
	// The image's former device, which was unmapped by force. Pods that still have its
	// dead file system must go first.
	var others []mount.MountInfo
	for _, other := range mounts {
		if other.Major == m.Major && other.Minor == m.Minor && other.MountPoint != m.MountPoint {
			others = append(others, other)
		}
	}
	if len(others) > 0 {
		return false, refused("%s holds another device's file system (%s), which is also mounted at %s: delete the Pods that use it", staging, m.Source, paths(others))
	}
	return false, s.unmountAll(o, staging)
}

// formatAndMount reports whether it made a file system.
func (s *Server) formatAndMount(ctx context.Context, o *operation, v volumeRequest, d krbd.Device) (made bool, err error) {
	o.at("a look at what is on %s", d.Path())
	if !d.ReadOnly {
		if err := s.host.clearUnfinished(d.Path()); err != nil {
			return false, internal("look at what is on "+d.Path(), err)
		}
	}
	present, err := s.content(v, d)
	if err != nil {
		return false, err
	}
	fsType, reads := v.fsType, d.ReadOnly || slices.Contains(v.flags, "ro")
	switch {
	case present == "" && reads:
		return false, refused("image %s has no file system, and the volume may only be read: use it once in a volume with ReadWriteOnce", v.name())
	case fsType == "" && volume.IsFileSystem(present):
		fsType = present // a clone of another class's volume
	case fsType == "":
		fsType = defaultFileSystem
	}
	if present != "" && present != fsType {
		return false, refused("image %s holds %s, and the volume is to have %s: nothing is changed, so that no data are lost; set the volume's fsType to what is there, or take another image",
			v.name(), present, fsType)
	}
	if err := os.MkdirAll(v.staging, 0o750); err != nil {
		return false, internal("make the staging path", err)
	}
	switch {
	case present == "":
		o.at("the formatting of %s", d.Path())
		err = s.makeFileSystem(v, d, fsType)
	case !reads:
		err = s.repair(ctx, o, v, d)
	}
	if err != nil {
		return false, err
	}
	o.at("the mounting of %s", d.Path())
	if err := s.cfg.Mounts.Mount(d.Path(), v.staging, fsType, mountOptions(fsType, v.flags, d.ReadOnly)); err != nil {
		return false, internal("mount image "+v.name()+" ("+d.Path()+") at "+v.staging, fmt.Errorf("%w; the node's kernel log may say more (dmesg)", err))
	}
	return present == "", nil
}

// mountOptions are a volume's own and what its file system needs here.
func mountOptions(fsType string, flags []string, readOnly bool) []string {
	options := slices.Clone(flags)
	add := func(option string) {
		if !slices.Contains(options, option) {
			options = append(options, option)
		}
	}
	if fsType == xfs {
		// A clone has the UUID of its source, beside which Linux would not mount it.
		add("nouuid")
	}
	if readOnly {
		options = slices.DeleteFunc(options, func(option string) bool { return option == "rw" })
		add("ro")
		// The journal can't be replayed on a device that can't be written to.
		if fsType == xfs {
			add("norecovery")
		} else {
			add("noload")
		}
	}
	return options
}

// grow gives a mounted file system the size of its device.
func (s *Server) grow(o *operation, d krbd.Device, mountedAt string) error {
	o.at("the growing of the file system on %s", d.Path())
	resizer := mount.NewResizeFs(s.cfg.Exec)
	need, err := resizer.NeedResize(d.Path(), mountedAt)
	if err == nil && need {
		_, err = resizer.Resize(d.Path(), mountedAt)
	}
	if err != nil {
		return internal("grow the file system on "+d.Path()+" (image "+d.Pool+"/"+d.Image+")", err)
	}
	return nil
}
