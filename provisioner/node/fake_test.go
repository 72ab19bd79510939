// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"
	"k8s.io/utils/exec"
	testingexec "k8s.io/utils/exec/testing"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// errKilled is what a killed plugin gets of whatever it tries to do.
var errKilled = errors.New("killed")

// FakeNode is a machine: its kernel's devices and mounts, the images' contents, and the
// commands of mount-utils. It outlives the Servers that work on it, as a kernel does.
type FakeNode struct {
	// FakeMounter has the methods that nobody calls.
	*mount.FakeMounter
	t *testing.T

	mu      sync.Mutex // guards the fields below
	devices map[int]krbd.Device
	mounts  []mount.MountInfo
	images  map[string]*FakeImage // by the volume's handle
	// watch makes Ceph list a client as the watcher of an image; watches end what it began.
	watch   func(pool, image, address string) (stop func())
	watches map[int]func()
	// did are the changes, in order.
	did []string
	// killAt is the number of the change at which the plugin is killed, before it or after
	// it; 0 for never.
	killAt    int
	killAfter bool
	killed    bool
	requests  []krbd.Request
	options   [][]string // of mounts
	mapErr    error
	unmapErr  error
	mountErr  error
	listErr   error
	// hang blocks what a call does next until it is closed.
	hang chan struct{}
}

// FakeImage is an image.
type FakeImage struct {
	fsType          string // empty if there is no file system
	size, fsSize    uint64
	made            int // how often mkfs ran
	superReadOnly   bool
	needsRecovering bool
	beginning       []byte // what the device begins with
	blkidFails      bool   // it finds nothing, whatever there is
	readErr         error  // of reads past the caches
	fsck            int    // its exit status
}

// nodeClient is the address of the node's clients in Ceph, as Linux shows it.
const nodeClient = "10.77.0.2:0/4711"

func newFakeNode(t *testing.T) *FakeNode {
	return &FakeNode{
		FakeMounter: mount.NewFakeMounter(nil), t: t, devices: map[int]krbd.Device{}, images: map[string]*FakeImage{}, watches: map[int]func(){},
	}
}

// change makes a change, unless the plugin is dead.
func (n *FakeNode) change(what string, do func() error) error {
	n.mu.Lock()
	hang := n.hang
	n.mu.Unlock()
	if hang != nil {
		<-hang
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.killed {
		return errKilled
	}
	n.did = append(n.did, what)
	last := len(n.did) == n.killAt
	if last {
		n.killed = true
		if !n.killAfter {
			return errKilled
		}
	}
	if err := do(); err != nil {
		return err
	}
	if last {
		return errKilled
	}
	return nil
}

// setHang blocks all changes until hang is closed; nil for none.
func (n *FakeNode) setHang(hang chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hang = hang
}

// restart is what happens after the plugin was killed.
func (n *FakeNode) restart() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.killAt, n.killed = 0, false
}

// reboot forgets what a kernel forgets.
func (n *FakeNode) reboot() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loseDevices()
	n.mounts = nil
}

// loseDevices unmaps all images by force: mounts stay.
func (n *FakeNode) loseDevices() {
	clear(n.devices)
	for _, stop := range n.watches {
		stop()
	}
	clear(n.watches)
}

// Devices implements Kernel.
func (n *FakeNode) Devices() ([]krbd.Device, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var devices []krbd.Device
	for _, d := range n.devices {
		if i := n.images[handleOf(d)]; i != nil {
			d.SizeBytes = i.size
		}
		devices = append(devices, d)
	}
	return devices, n.listErr
}

// Map implements Kernel.
func (n *FakeNode) Map(_ context.Context, r krbd.Request) (d krbd.Device, err error) {
	err = n.change("map", func() error {
		if n.mapErr != nil {
			return n.mapErr
		}
		n.requests = append(n.requests, r)
		id := 0
		for n.devices[id].Image != "" {
			id++
		}
		d = krbd.Device{ID: id, FSID: r.FSID, Pool: r.Pool, Image: r.Image, ReadOnly: r.ReadOnly, Major: 252, Minor: uint32(id) * 16, ClientAddr: nodeClient, Ours: true}
		handle := volume.CSIHandle(r.FSID, r.Pool, r.Image)
		if n.images[handle] == nil {
			return krbd.ErrNotFound
		}
		d.SizeBytes = n.images[handle].size
		n.devices[id] = d
		if !r.ReadOnly {
			n.watches[id] = n.watch(r.Pool, r.Image, nodeClient)
		}
		return nil
	})
	return d, err
}

// Unmap implements Kernel.
func (n *FakeNode) Unmap(_ context.Context, id int) error {
	return n.change("unmap", func() error {
		if n.unmapErr != nil {
			return n.unmapErr
		}
		if d, found := n.devices[id]; found && len(table(n.mounts).of(d)) > 0 {
			n.t.Errorf("unmapped %s while it is mounted at %s", d.Path(), paths(table(n.mounts).of(d)))
		}
		delete(n.devices, id)
		if stop := n.watches[id]; stop != nil {
			stop()
			delete(n.watches, id)
		}
		return nil
	})
}

func (n *FakeNode) byPath(path string) (krbd.Device, *FakeImage) {
	id, err := strconv.Atoi(strings.TrimPrefix(path, "/dev/rbd"))
	d, found := n.devices[id]
	if err != nil || !found {
		return krbd.Device{}, nil
	}
	return d, n.images[handleOf(d)]
}

// Table implements Mounts.
func (n *FakeNode) Table() ([]mount.MountInfo, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	mounts := slices.Clone(n.mounts)
	for i, m := range mounts {
		if d, image := n.byPath(m.Source); image != nil && m.FsType != "devtmpfs" && (image.superReadOnly || d.ReadOnly) {
			mounts[i].SuperOptions = []string{"ro"}
		}
	}
	return mounts, nil
}

// Mount implements mount.Interface.
func (n *FakeNode) Mount(source, target, fsType string, options []string) error {
	return n.MountSensitive(source, target, fsType, options, nil)
}

// MountSensitive implements mount.Interface.
func (n *FakeNode) MountSensitive(source, target, fsType string, options, _ []string) error {
	m := mount.MountInfo{MountPoint: target, Source: source, FsType: fsType, Root: "/", MountOptions: []string{"rw"}, SuperOptions: []string{"rw"}}
	readOnly := slices.Contains(options, "ro")
	if !slices.Contains(options, "bind") {
		return n.change("mount", func() error {
			d, image := n.byPath(source)
			if n.mountErr != nil {
				return n.mountErr
			}
			if image == nil || image.fsType != fsType || d.ReadOnly && !readOnly || image.needsRecovering && d.ReadOnly && !slices.Contains(options, "noload") {
				return fmt.Errorf("mount failed: exit status 32\nOutput: %s: wrong fs type, bad option", source)
			}
			m.Major, m.Minor = int(d.Major), int(d.Minor)
			if readOnly {
				m.MountOptions = []string{"ro"}
			}
			n.mounts, n.options = append(n.mounts, m), append(n.options, options)
			return nil
		})
	}
	err := n.change("bind", func() error {
		if d, image := n.byPath(source); image != nil {
			m.FsType, m.Root, m.Source = "devtmpfs", "/"+filepath.Base(d.Path()), "udev"
		} else if from, found := table(n.mounts).at(source); found {
			from.MountPoint = target
			m = from
		} else {
			return fmt.Errorf("nothing is mounted at %s", source)
		}
		n.mounts = append(n.mounts, m)
		return nil
	})
	if err != nil || !readOnly {
		return err
	}
	return n.change("remount", func() error {
		n.mounts[len(n.mounts)-1].MountOptions = slices.DeleteFunc(slices.Clone(options), func(o string) bool { return o == "bind" })
		return nil
	})
}

// Unmount implements mount.Interface.
func (n *FakeNode) Unmount(target string) error {
	return n.change("unmount", func() error {
		for i, m := range slices.Backward(n.mounts) {
			if m.MountPoint == target {
				n.mounts = slices.Delete(n.mounts, i, i+1)
				return nil
			}
		}
		return fmt.Errorf("%s: not mounted", target)
	})
}

// Command implements exec.Interface with what mount-utils runs.
func (n *FakeNode) Command(name string, args ...string) exec.Cmd {
	action := func() ([]byte, []byte, error) {
		out, err := n.run(name, args)
		return []byte(out), nil, err
	}
	return testingexec.InitFakeCmd(&testingexec.FakeCmd{CombinedOutputScript: []testingexec.FakeAction{action}}, name, args...)
}

// CommandContext implements exec.Interface.
func (n *FakeNode) CommandContext(_ context.Context, name string, args ...string) exec.Cmd {
	return n.Command(name, args...)
}

// LookPath implements exec.Interface.
func (n *FakeNode) LookPath(file string) (string, error) { return file, nil }

func (n *FakeNode) run(name string, args []string) (string, error) {
	last := args[len(args)-1]
	// xfs_growfs takes the path of the mount, all others that of the device.
	n.mu.Lock()
	if m, found := table(n.mounts).at(last); found {
		last = m.Source
	}
	d, image := n.byPath(last)
	n.mu.Unlock()
	if image == nil {
		return "no such device", errors.New("exit status 1")
	}
	switch name {
	case "blkid":
		if image.fsType == "" || image.blkidFails {
			return "", &testingexec.FakeExitError{Status: 2}
		}
		return "TYPE=" + image.fsType + "\n", nil
	case "blockdev":
		if d.ReadOnly {
			return "1\n", nil
		}
		return "0\n", nil
	case "fsck":
		if image.fsck != 0 {
			return "UNEXPECTED INCONSISTENCY\nrun it by hand", &testingexec.FakeExitError{Status: image.fsck}
		}
		return "", nil
	case "mkfs.ext3", "mkfs.ext4", "mkfs.xfs":
		if !slices.Contains(args, "nodiscard") && !slices.Contains(args, "-K") {
			n.t.Errorf("%s %v discards", name, args)
		}
		return "", n.change("mkfs", func() error {
			image.fsType, image.fsSize = strings.TrimPrefix(name, "mkfs."), image.size
			image.made++
			return nil
		})
	case "resize2fs", "xfs_growfs":
		return "", n.change("grow", func() error {
			image.fsSize = image.size
			return nil
		})
	}
	n.t.Errorf("unexpected command %s %v", name, args)
	return "", errors.New("no such command")
}

// host returns the calls that a Server makes past mount-utils.
func (n *FakeNode) host() host {
	return host{
		statfs: func(string) (unix.Statfs_t, error) {
			return unix.Statfs_t{Bsize: 4096, Blocks: 1000, Bfree: 600, Bavail: 500, Files: 100, Ffree: 90}, nil
		},
		readDevice: func(path string, size int) ([]byte, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			_, image := n.byPath(path)
			if image == nil {
				return nil, unix.ENXIO
			}
			if image.readErr != nil {
				return nil, image.readErr
			}
			return append(slices.Clone(image.beginning), make([]byte, size-len(image.beginning))...), nil
		},
		clearUnfinished: func(string) error { return nil },
	}
}
