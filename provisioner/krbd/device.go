// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Device is a mapped image.
type Device struct {
	ID   int    // N of /dev/rbdN
	FSID string // the Ceph cluster's identity
	Pool string
	// Namespace and Snapshot are empty for all that Map makes.
	Namespace, Image, Snapshot string
	SizeBytes                  uint64
	ReadOnly                   bool
	Major, Minor               uint32
	// ClientAddr is what Ceph shows as the watcher of an image that is mapped to be written
	// to, as "10.77.0.2:0/123456". Devices with the same monitors, user and key share it.
	ClientAddr string
	// Ours says that Map made the device, in this process or an earlier one. Others belong to
	// another program, such as rbd map.
	Ours bool
}

// Path returns the path of the device on the node, "/dev/rbdN".
func (d Device) Path() string { return "/dev/" + d.name() }

func (d Device) name() string { return "rbd" + strconv.Itoa(d.ID) }

func (d Device) sameImage(other Device) bool {
	return d.FSID == other.FSID && d.Pool == other.Pool && d.Namespace == other.Namespace &&
		d.Image == other.Image && d.Snapshot == other.Snapshot
}

// entry is a device with what it was mapped with.
type entry struct {
	Device
	// config is the line that was written to map it. It may have a key in clear, if another
	// program mapped it.
	config string
}

// is reports whether the device is that of a request, whatever its access mode.
func (e entry) is(r Request) bool {
	if e.Pool != r.Pool || e.Image != r.Image || e.Namespace != "" || e.Snapshot != "" {
		return false
	}
	if r.FSID != "" {
		return e.FSID == r.FSID
	}
	monitors, _, _ := strings.Cut(e.config, " ")
	return slices.ContainsFunc(strings.Split(monitors, ","), func(m string) bool { return slices.Contains(r.Monitors, m) })
}

// keyName returns the name of the key that the device was mapped with, or "".
func (e entry) keyName() string {
	fields := strings.Fields(e.config)
	if len(fields) < 2 {
		return ""
	}
	for option := range strings.SplitSeq(fields[1], ",") {
		if name, found := strings.CutPrefix(option, "key="); found {
			return name
		}
	}
	return ""
}

// Devices returns all devices of the node, also those that other programs mapped, sorted by
// number. It asks the kernel only, so it does not wait for Ceph. The error is ErrNoDriver if
// the node has no rbd driver.
func (d *Driver) Devices() ([]Device, error) {
	entries, err := d.entries()
	if err != nil {
		return nil, err
	}
	devices := make([]Device, len(entries))
	for i, e := range entries {
		devices[i] = e.Device
	}
	return devices, nil
}

func (d *Driver) bus(elements ...string) string {
	return filepath.Join(append([]string{d.sysfs, "bus", "rbd"}, elements...)...)
}

func (d *Driver) entries() ([]entry, error) {
	names, err := os.ReadDir(d.bus("devices"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, ErrNoDriver
	case err != nil:
		return nil, fmt.Errorf("list the devices of Linux's rbd driver: %w", err)
	}
	var entries []entry
	for _, name := range names {
		id, err := strconv.Atoi(name.Name())
		if err != nil {
			continue // no device
		}
		e, found, err := d.entry(id)
		if err != nil {
			return nil, err
		}
		if found {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.ID, b.ID) })
	return entries, nil
}

// device returns a device by its number.
func (d *Driver) device(id int) (Device, bool, error) {
	if _, err := os.Stat(d.bus("devices")); errors.Is(err, fs.ErrNotExist) {
		return Device{}, false, ErrNoDriver
	}
	e, found, err := d.entry(id)
	return e.Device, found, err
}

// entry reads a device. One that comes or goes meanwhile is not found.
func (d *Driver) entry(id int) (entry, bool, error) {
	e := entry{Device: Device{ID: id}}
	attributes := reader{dir: d.bus("devices", strconv.Itoa(id))}
	e.Pool = attributes.text("pool")
	e.Image = attributes.text("name")
	e.Snapshot = attributes.text("current_snap")
	if e.Snapshot == "-" {
		e.Snapshot = ""
	}
	e.FSID = attributes.text("cluster_fsid")
	e.SizeBytes = attributes.number("size", 64)
	e.Major = uint32(attributes.number("major", 32)) //nolint:gosec // number checks the size
	e.Minor = uint32(attributes.number("minor", 32)) //nolint:gosec // number checks the size
	e.ClientAddr = attributes.text("client_addr")
	e.config = attributes.text("config_info")
	e.Ours = strings.HasPrefix(e.keyName(), keyPrefix)
	// Older kernels have no namespaces.
	if attributes.has("pool_ns") {
		e.Namespace = attributes.text("pool_ns")
	}
	block := reader{dir: filepath.Join(d.sysfs, "block", e.name())}
	e.ReadOnly = block.number("ro", 8) != 0
	err := cmp.Or(attributes.err, block.err)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return entry{}, false, nil
	}
	if err != nil {
		return entry{}, false, fmt.Errorf("read what Linux says of %s: %w", e.Path(), err)
	}
	return e, true, nil
}

// checkNode makes sure that programs here can open a device.
func (d *Driver) checkNode(device Device) error {
	path := filepath.Join(d.dev, device.name())
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("the image is mapped, but %s is missing here: mount the node's /dev into the container: %w", device.Path(), err)
	}
	return nil
}

// reader reads the files of a folder, until one fails.
type reader struct {
	dir string
	err error
}

func (r *reader) has(name string) bool {
	_, err := os.Stat(filepath.Join(r.dir, name))
	return err == nil
}

func (r *reader) text(name string) string {
	if r.err != nil {
		return ""
	}
	raw, err := os.ReadFile(filepath.Join(r.dir, name))
	r.err = err
	return strings.TrimSuffix(string(raw), "\n")
}

func (r *reader) number(name string, bits int) uint64 {
	text := r.text(name)
	if r.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, bits)
	r.err = err
	return n
}
