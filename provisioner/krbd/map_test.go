// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// TestMap maps an image, and looks at what the kernel was told and what it has then.
func TestMap(t *testing.T) {
	d, f := newFake(t)
	r := request("img")
	r.ReadOnly = true
	var err error
	r.Options, err = volume.ParseMapOptions("queue_depth=64,notrim")
	must(t, err)
	var given []byte
	f.answer = func(_, _ string) error {
		for _, entry := range f.keys {
			_, payload, _ := strings.Cut(entry, " ")
			given = []byte(payload)
		}
		return nil
	}
	got := mustMap(t, d, r)
	want := Device{ID: 0, FSID: fsid, Pool: "rbd", Image: "img", SizeBytes: 1 << 30, ReadOnly: true, Major: 252,
		ClientAddr: "10.0.0.9:0/123456", Ours: true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got.Path() != "/dev/rbd0" {
		t.Errorf("got the path %s", got.Path())
	}
	pattern := `^10\.0\.0\.1:6789,10\.0\.0\.2:6789 name=kube,key=rbd-provisioner-[A-Z2-7]{16},mount_timeout=15,ro,queue_depth=64,notrim rbd img -$`
	if lines := f.mapped(); len(lines) != 1 || !regexp.MustCompile(pattern).MatchString(lines[0]) {
		t.Errorf("wrote %q", lines)
	}
	raw, err := base64.StdEncoding.DecodeString(r.Key.Reveal())
	must(t, err)
	if !bytes.Equal(given, raw) {
		t.Error("while it mapped, the kernel did not have the decoded key")
	}
	if len(f.keys) != 0 {
		t.Errorf("%d keys are left in the keyring", len(f.keys))
	}
	if !bytes.Equal(f.payloads[0], make([]byte, len(raw))) {
		t.Error("the decoded key is still in memory")
	}
}

// TestErrors checks what becomes of the kernel's answers.
func TestErrors(t *testing.T) {
	all := []string{`"img"`, `"rbd"`, `"kube"`, "10.0.0.1:6789,10.0.0.2:6789"}
	for name, test := range map[string]struct {
		answer, keyErr error
		key            rbd.Key
		want           error
		text           string
	}{
		"wrong key":             {answer: unix.EACCES, want: ErrDenied, text: "ceph auth get-key client.kube"},
		"no rights in the pool": {answer: unix.EPERM, want: ErrCaps, text: `osd "profile rbd pool=rbd"`},
		"no image":              {answer: unix.ENOENT, want: ErrNotFound, text: "rbd ls rbd"},
		"silence":               {answer: unix.ETIMEDOUT, want: ErrUnreachable, text: "ceph -s"},
		"unknown option":        {answer: unix.EINVAL, want: ErrInvalid, text: "options"},
		"unknown feature":       {answer: unix.ENXIO, want: ErrInvalid, text: "rbd info rbd/img"},
		"anything else":         {answer: unix.EIO, want: unix.EIO, text: "kernel log"},
		"/sys is read-only": {
			answer: &fs.PathError{Op: "open", Path: "/sys/bus/rbd/add_single_major", Err: unix.EROFS},
			want:   unix.EROFS, text: "privileged, with hostNetwork",
		},
		"neither of the two files": {
			answer: &fs.PathError{Op: "open", Path: "/sys/bus/rbd/add_single_major", Err: unix.ENOENT},
			want:   ErrNoDriver, text: "modprobe rbd",
		},
		"no type of key of this name": {keyErr: unix.ENODEV, want: ErrNoDriver, text: "modprobe rbd"},
		"seccomp":                     {keyErr: unix.EPERM, want: unix.EPERM, text: "privileged"},
		"quota":                       {keyErr: unix.EDQUOT, want: unix.EDQUOT, text: "root_maxkeys"},
		"bad payload":                 {keyErr: unix.EINVAL, want: unix.EINVAL, text: "hand the user's key to the kernel"},
		"a newer type of key": {
			keyErr: enotsupp, key: rbdtest.NewAES256KKey(), want: ErrInvalid, text: "ceph auth rotate client.kube --key-type aes",
		},
		"a newer type of key, by another kernel": {keyErr: unix.EINVAL, key: rbdtest.NewAES256KKey(), want: ErrInvalid, text: "aes256k"},
	} {
		t.Run(name, func(t *testing.T) {
			d, f := newFake(t)
			f.keyErr = test.keyErr
			f.answer = func(_, _ string) error { return test.answer }
			r := request("img")
			if !test.key.IsZero() {
				r.Key = test.key
			}
			_, err := d.Map(t.Context(), r)
			wantError(t, err, test.want, r, append(all, test.text)...)
			if len(f.keys) != 0 {
				t.Errorf("%d keys are left in the keyring", len(f.keys))
			}
			// Nothing is remembered of it.
			f.keyErr, f.answer = nil, nil
			mustMap(t, d, r)
		})
	}
}

// TestNoDriver asks a node whose module is not loaded.
func TestNoDriver(t *testing.T) {
	d, f := newFake(t)
	must(t, os.RemoveAll(f.path("bus")))
	r := request("img")
	_, err := d.Map(t.Context(), r)
	wantError(t, err, ErrNoDriver, r, "modprobe rbd")
	_, err = d.Devices()
	wantError(t, err, ErrNoDriver, r)
	wantError(t, d.Unmap(t.Context(), 0), ErrNoDriver, r)
}

// TestExisting maps an image of which the node has a device, or one much like it.
func TestExisting(t *testing.T) {
	for name, test := range map[string]struct {
		attributes map[string]string // where they differ
		readOnly   bool
		noFSID     bool
		want       error
		text       string
		found      bool
	}{
		"the same":                        {found: true},
		"of another pool":                 {attributes: map[string]string{"pool": "rbd2"}},
		"of another image":                {attributes: map[string]string{"name": "im"}},
		"of a namespace":                  {attributes: map[string]string{"pool_ns": "ns"}},
		"of a snapshot":                   {attributes: map[string]string{"current_snap": "s"}},
		"of another cluster":              {attributes: map[string]string{"cluster_fsid": otherFSID}},
		"of one of the monitors":          {noFSID: true, found: true},
		"of none of the monitors":         {noFSID: true, attributes: map[string]string{"config_info": "10.0.0.11:6789 name=kube,key=rbd-provisioner-A rbd img -"}},
		"read-only, and to be writable":   {readOnly: true, want: ErrBusy, text: "/dev/rbd0, which is read-only, and it is wanted writable"},
		"of other monitors, too":          {attributes: map[string]string{"config_info": "10.0.0.2:6789,10.0.0.3:6789 name=kube,key=rbd-provisioner-A rbd img -"}, noFSID: true, found: true},
		"mapped by rbd map":               {attributes: map[string]string{"config_info": "10.0.0.2:6789 name=kube,key=client.kube rbd img -"}, want: ErrBusy, text: "another program of this node has it as /dev/rbd0"},
		"mapped by a program without key": {attributes: map[string]string{"config_info": "10.0.0.2:6789 name=kube rbd img -"}, want: ErrBusy, text: "rbd unmap /dev/rbd0"},
		"read-only, by another program":   {attributes: map[string]string{"config_info": "10.0.0.2:6789 name=kube,secret=c2VjcmV0 rbd img -"}, readOnly: true, want: ErrBusy, text: "another program"},
	} {
		t.Run(name, func(t *testing.T) {
			d, f := newFake(t)
			attributes := map[string]string{
				"pool": "rbd", "name": "img", "current_snap": "-", "pool_ns": "", "cluster_fsid": fsid, "size": "4096",
				"major": "252", "config_info": "10.0.0.2:6789 name=kube,key=rbd-provisioner-A rbd img -",
			}
			for name, value := range test.attributes {
				attributes[name] = value
			}
			f.device(attributes, test.readOnly)
			r := request("img")
			if test.noFSID {
				r.FSID = ""
			}
			device, err := d.Map(t.Context(), r)
			if test.want != nil {
				wantError(t, err, test.want, r, test.text)
				return
			}
			must(t, err)
			if found := device.ID == 0; found != test.found {
				t.Errorf("got %s, after it wrote %q", device.Path(), f.mapped())
			}
		})
	}
}

// TestBothModes has a device of each mode, and gets the one that is wanted.
func TestBothModes(t *testing.T) {
	d, f := newFake(t)
	for _, readOnly := range []bool{true, false} {
		f.device(map[string]string{
			"pool": "rbd", "name": "img", "current_snap": "-", "cluster_fsid": fsid, "size": "4096",
			"major": "252", "config_info": "10.0.0.2:6789 name=kube,key=rbd-provisioner-A rbd img -",
		}, readOnly)
	}
	if device := mustMap(t, d, request("img")); device.ID != 1 {
		t.Errorf("got %s, want that which is writable", device.Path())
	}
}

// TestOtherCluster maps with monitors of another cluster than the volume's. A device of it
// is not left.
func TestOtherCluster(t *testing.T) {
	d, f := newFake(t)
	r := request("img")
	r.Monitors = []string{"10.0.9.9:6789"}
	_, err := d.Map(t.Context(), r)
	wantError(t, err, ErrOtherCluster, r, fsid, otherFSID)
	noDevice(t, d)
	// If it can't be unmapped, the error says so, too.
	f.answer = func(file, _ string) error {
		if file == "remove_single_major" {
			return unix.EIO
		}
		return nil
	}
	_, err = d.Map(t.Context(), r)
	wantError(t, err, ErrOtherCluster, r, "/dev/rbd0 is left")
}

// TestMissingNode maps in a container that has its own /dev.
func TestMissingNode(t *testing.T) {
	d, f := newFake(t)
	f.noNode = true
	r := request("img")
	_, err := d.Map(t.Context(), r)
	wantError(t, err, fs.ErrNotExist, r, "/dev/rbd0 is missing here")
	noDevice(t, d)
}

// TestSilentMonitors asks monitors that do not answer: the driver is not asked.
func TestSilentMonitors(t *testing.T) {
	d, f := newFake(t)
	silent := errors.New("silent")
	d.greet = func(context.Context, []string, volume.Protocol) error { return silent }
	r := request("img")
	_, err := d.Map(t.Context(), r)
	wantError(t, err, silent, r)
	if lines := f.mapped(); len(lines) != 0 {
		t.Errorf("wrote %q", lines)
	}
}

// TestConcurrent maps several images at once, each for several callers. Each is mapped once,
// one at a time, and unmapped once.
func TestConcurrent(t *testing.T) {
	d, f := newFake(t)
	images := []string{"a", "b", "c", "d", "e"}
	var callers sync.WaitGroup
	for range 8 {
		for _, image := range images {
			callers.Go(func() {
				device, err := d.Map(t.Context(), request(image))
				if err != nil || device.Image != image {
					t.Errorf("asked for %s, got %v %v", image, device, err)
				}
			})
		}
	}
	callers.Wait()
	if lines := f.mapped(); len(lines) != len(images) || f.most != 1 {
		t.Errorf("wrote %q, %d at once", lines, f.most)
	}
	devices, err := d.Devices()
	must(t, err)
	for i, device := range devices {
		if device.ID != i {
			t.Errorf("device %d has the number %d", i, device.ID)
		}
		for range 4 {
			callers.Go(func() {
				if err := d.Unmap(t.Context(), device.ID); err != nil {
					t.Error(err)
				}
			})
		}
	}
	callers.Wait()
	noDevice(t, d)
	if len(devices) != len(images) || len(f.removed) != len(images) {
		t.Errorf("had %v, removed %v", devices, f.removed)
	}
}

func noDevice(t *testing.T, d *Driver) {
	t.Helper()
	devices, err := d.Devices()
	if err != nil || len(devices) != 0 {
		t.Errorf("there are the devices %v %v", devices, err)
	}
}
