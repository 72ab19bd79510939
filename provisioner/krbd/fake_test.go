// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// fsid is that of the cluster of the monitor 10.0.0.1, otherFSID that of all others.
const (
	fsid      = "b7c4b8e2-6f6c-4a4d-9f38-1f8c5c1f7a01"
	otherFSID = "5e0d1c0a-1111-4222-8333-944455556666"
)

// FakeSysfs is the folder of Linux's rbd driver, which makes and removes devices when its
// files are written to, and has the kernel's keyring.
type FakeSysfs struct {
	t   *testing.T
	dir string
	// lines has what was written to map, removed the numbers of devices that were unmapped.
	lines   []string
	removed []string
	// payloads are the keys that it was given, keys those that it has.
	payloads [][]byte
	keys     map[int]string
	// answer, if not nil, is asked before the driver makes or removes a device. It may wait.
	answer func(file, text string) error
	keyErr error
	noNode bool

	mu     sync.Mutex // guards all above
	adding int
	// most is how many wrote at once to map.
	most int
}

// newFake makes a Driver on a FakeSysfs. All its monitors answer.
func newFake(t *testing.T) (*Driver, *FakeSysfs) {
	t.Helper()
	f := &FakeSysfs{t: t, dir: t.TempDir(), keys: map[int]string{}}
	for _, folder := range []string{"bus/rbd/devices", "block", "dev"} {
		must(t, os.MkdirAll(filepath.Join(f.dir, folder), 0o755))
	}
	d := New(Config{Sysfs: f.dir, Dev: filepath.Join(f.dir, "dev")})
	d.kernel = f
	d.greet = func(context.Context, []string, volume.Protocol) error { return nil }
	return d, f
}

func (f *FakeSysfs) addKey(name string, payload []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keyErr != nil {
		return 0, f.keyErr
	}
	f.payloads = append(f.payloads, payload)
	serial := len(f.payloads)
	f.keys[serial] = name + " " + string(payload)
	return serial, nil
}

func (f *FakeSysfs) unlinkKey(serial int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, found := f.keys[serial]; !found {
		return unix.ENOKEY
	}
	delete(f.keys, serial)
	return nil
}

func (f *FakeSysfs) write(path, text string) error {
	file := filepath.Base(path)
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: unix.ENOENT}
	}
	f.begin(file, text)
	defer f.end(file)
	if f.answer != nil {
		if err := f.answer(file, text); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if file == "remove_single_major" {
		return f.remove(text)
	}
	return f.add(text)
}

func (f *FakeSysfs) begin(file, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if file == "add_single_major" {
		f.lines = append(f.lines, text)
		f.adding++
		f.most = max(f.most, f.adding)
	}
}

func (f *FakeSysfs) end(file string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if file == "add_single_major" {
		f.adding--
	}
}

func (f *FakeSysfs) add(line string) error {
	fields := strings.Fields(line)
	options := strings.Split(fields[1], ",")
	key := func(entry string) bool { return slices.Contains(options, "key="+strings.Fields(entry)[0]) }
	if !slices.ContainsFunc(slices.Collect(maps.Values(f.keys)), key) {
		return unix.EPERM // Failed due to key not found
	}
	attributes := map[string]string{
		"pool": fields[2], "name": fields[3], "current_snap": fields[4], "pool_ns": "",
		"cluster_fsid": otherFSID, "size": "1073741824", "major": "252", "config_info": line,
	}
	if strings.HasPrefix(line, "10.0.0.1:") {
		attributes["cluster_fsid"] = fsid
	}
	f.device(attributes, slices.Contains(options, "ro"))
	return nil
}

// device makes a device with the first free number.
func (f *FakeSysfs) device(attributes map[string]string, readOnly bool) {
	id := 0
	for exists(f.path("bus/rbd/devices", strconv.Itoa(id))) {
		id++
	}
	attributes["minor"] = strconv.Itoa(16 * id)
	attributes["client_addr"] = "10.0.0.9:0/123456"
	ro := "0"
	if readOnly {
		ro = "1"
	}
	// Renamed, so that it is there at once, as in the kernel.
	tmp := f.path("new")
	must(f.t, os.Mkdir(tmp, 0o755))
	for name, value := range attributes {
		must(f.t, os.WriteFile(filepath.Join(tmp, name), []byte(value+"\n"), 0o600))
	}
	block := f.path("block", fmt.Sprint("rbd", id))
	must(f.t, os.MkdirAll(filepath.Join(block, "holders"), 0o755))
	must(f.t, os.WriteFile(filepath.Join(block, "ro"), []byte(ro+"\n"), 0o600))
	if !f.noNode {
		must(f.t, os.WriteFile(f.path("dev", fmt.Sprint("rbd", id)), nil, 0o600))
	}
	must(f.t, os.Rename(tmp, f.path("bus/rbd/devices", strconv.Itoa(id))))
}

func (f *FakeSysfs) remove(id string) error {
	if !exists(f.path("bus/rbd/devices", id)) {
		return unix.ENOENT
	}
	must(f.t, os.Rename(f.path("bus/rbd/devices", id), f.path("old")))
	for _, path := range []string{f.path("old"), f.path("block", "rbd"+id), f.path("dev", "rbd"+id)} {
		must(f.t, os.RemoveAll(path))
	}
	f.removed = append(f.removed, id)
	return nil
}

// mapped returns the lines that were written to map.
func (f *FakeSysfs) mapped() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.lines)
}

func (f *FakeSysfs) path(elements ...string) string {
	return filepath.Join(append([]string{f.dir}, elements...)...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// request asks for an image of the cluster fsid.
func request(image string) Request {
	return Request{
		FSID: fsid, Monitors: []string{"10.0.0.1:6789", "10.0.0.2:6789"},
		User: "kube", Key: rbdtest.NewKey(), Pool: "rbd", Image: image,
	}
}

// mustMap maps an image.
func mustMap(t *testing.T, d *Driver, r Request) Device {
	t.Helper()
	device, err := d.Map(t.Context(), r)
	must(t, err)
	return device
}

// wantError checks an error that becomes an event: that it is want, is one line, and has all
// of the texts, but not the key.
func wantError(t *testing.T, err, want error, r Request, texts ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got the error %v, want %v", err, want)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in the error: %v", text, err)
		}
	}
	if strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("the error has several lines: %v", err)
	}
	if !r.Key.IsZero() && strings.Contains(err.Error(), r.Key.Reveal()) {
		t.Error("the key is in the error")
	}
}
