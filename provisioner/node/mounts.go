// SPDX-License-Identifier: Apache-2.0

package node

import (
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/mount-utils"

	"ceph.com/rbd-provisioner/provisioner/krbd"
)

// Mounts is mount-utils, and the kernel's table of mounts, which names devices by number
// and can be read while a file system hangs.
type Mounts interface {
	mount.Interface
	Table() ([]mount.MountInfo, error)
}

// SystemMounts returns those of this process's mount namespace.
func SystemMounts() Mounts {
	// The container has no systemd, and looking for one takes a process.
	return systemMounts{mount.NewWithoutSystemd("")}
}

type systemMounts struct{ mount.Interface }

func (systemMounts) Table() ([]mount.MountInfo, error) {
	return mount.ParseMountInfo("/proc/self/mountinfo")
}

// table are the mounts that this process sees, in the order in which they were made.
type table []mount.MountInfo

// escape writes a path as the kernel's table does.
var escape = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// at returns what is mounted at a path, the topmost of several.
func (t table) at(path string) (mount.MountInfo, bool) {
	path = escape.Replace(filepath.Clean(path))
	for _, m := range slices.Backward(t) {
		if m.MountPoint == path {
			return m, true
		}
	}
	return mount.MountInfo{}, false
}

// of returns the mounts of a device: of its file system, and of its file, which is how a
// block volume is published.
func (t table) of(d krbd.Device) []mount.MountInfo {
	var found []mount.MountInfo
	for _, m := range t {
		if isFileSystem(m, d) || isFile(m, d) {
			found = append(found, m)
		}
	}
	return found
}

// isFileSystem reports whether m mounts the file system on a device.
func isFileSystem(m mount.MountInfo, d krbd.Device) bool {
	return m.Major == int(d.Major) && m.Minor == int(d.Minor)
}

// isFile reports whether m mounts a device's file. That of a device that is gone has
// "//deleted" behind it, even if another device has its number by now.
func isFile(m mount.MountInfo, d krbd.Device) bool {
	return m.FsType == "devtmpfs" && m.Root == "/"+filepath.Base(d.Path())
}

// paths returns where mounts are, for people.
func paths(mounts []mount.MountInfo) string {
	var texts []string
	for _, m := range mounts {
		texts = append(texts, m.MountPoint)
	}
	slices.Sort(texts)
	return strings.Join(slices.Compact(texts), ", ")
}

// table reads the mounts.
func (s *Server) table() (table, error) {
	mounts, err := s.cfg.Mounts.Table()
	if err != nil {
		return nil, internal("read the mounts of this node", err)
	}
	return mounts, nil
}

// unmountAll takes everything off a path. Mounted twice, as by a plugin that died and one
// that did not look, it takes two turns.
func (s *Server) unmountAll(o *operation, path string) error {
	for range maxStacked {
		mounts, err := s.table()
		if err != nil {
			return err
		}
		if _, mounted := mounts.at(path); !mounted {
			return nil
		}
		o.at("the unmounting of %s", path)
		if err := s.cfg.Mounts.Unmount(path); err != nil {
			return internal("unmount "+path, err)
		}
	}
	return status.Errorf(codes.Internal, "unmount %s: it is still mounted after %d attempts", path, maxStacked)
}

// maxStacked is how many mounts on one path are taken off in a call.
const maxStacked = 16
