// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// step and outcome are those of the program mapper.
type step struct {
	FSID                            string
	Monitors                        []string
	User, Key, Pool, Image, Options string
	ReadOnly, Keep                  bool
}

type outcome struct {
	Device            krbd.Device
	Path, Error, Kind string
	Took              time.Duration
	Keys              int
}

// TestKernel maps with package krbd, and checks what it makes of the kernel's answers, which
// its unit tests assume.
func TestKernel(t *testing.T) {
	t.Parallel()
	f := suite.New(t, nil)
	ceph := suite.Rig.Ceph
	const image, foreign = "image", "foreign"
	create := func(name, features string) {
		_, err := ceph.Run(t.Context(), "rbd", "create", f.Name+"/"+name, "--size", "64M", "--image-feature", features)
		f.Must(err)
		t.Cleanup(func() {
			_, err := ceph.Run(context.WithoutCancel(t.Context()), "rbd", "rm", "--no-progress", f.Name+"/"+name)
			f.Must(err)
		})
	}
	create(image, "layering")
	create(foreign, "layering,exclusive-lock,journaling")
	key, err := ceph.Key(t.Context(), f.Name+"-user")
	f.Must(err)
	other, err := ceph.CreateUser(t.Context(), f.Name+"-other", "mon", "profile rbd", "osd", "profile rbd pool=rbd")
	f.Must(err)

	plain := step{
		FSID: ceph.FSID, Monitors: []string{ceph.MonitorV1}, User: f.Name + "-user", Key: key, Pool: f.Name, Image: image,
	}
	rows := []struct {
		name       string
		change     func(*step)
		kind, text string // of the error; one kind of several
	}{
		{"a new device", func(s *step) { s.Keep = true }, "", ""},
		{"the same one, which is writable", func(s *step) { s.ReadOnly, s.Keep = true, true }, "busy", "/dev/rbd"},
		{"the same one", func(*step) {}, "", ""},
		{"read-only", func(s *step) { s.ReadOnly = true }, "", ""},
		{"options", func(s *step) { s.Options = "queue_depth=64,alloc_size=65536,notrim,read_from_replica=balance" }, "", ""},
		{"protocol 2", func(s *step) { s.Monitors[0], s.Options = ceph.MonitorV2, "ms_mode=prefer-crc" }, "", ""},
		{"protocol 2, encrypted", func(s *step) { s.Monitors[0], s.Options = ceph.MonitorV2, "ms_mode=secure" }, "", ""},
		{"protocol 2 without ms_mode", func(s *step) { s.Monitors[0] = ceph.MonitorV2 }, "invalid", "speaks message protocol v2"},
		{"ms_mode with protocol 1", func(s *step) { s.Options = "ms_mode=crc" }, "invalid", "speaks message protocol v1"},
		{"one of two monitors is dead", func(s *step) { s.Monitors = append([]string{"10.77.0.1:9"}, s.Monitors...) }, "", ""},
		{"a monitor that is not there", func(s *step) { s.Monitors[0] = "10.77.0.1:9" }, "unreachable", "10.77.0.1:9 connection refused"},
		// The refusal of Ceph 20 may be lost on the way: see package krbd.
		{"another user's key", func(s *step) { s.Key = other }, "denied|unreachable", "ceph auth get-key client." + f.Name + "-user"},
		{"a user who does not exist", func(s *step) { s.User = "nobody" }, "denied|unreachable", `user "nobody"`},
		{"no rights in the pool", func(s *step) { s.User, s.Key = f.Name+"-other", other }, "caps", "profile rbd pool=" + f.Name},
		{"no such image", func(s *step) { s.Image = "missing" }, "not found", `"missing"`},
		{"no such pool", func(s *step) { s.Pool = f.Name + "-2" }, "not found", f.Name + "-2"},
		{"an image with a feature that Linux lacks", func(s *step) { s.Image = foreign }, "invalid", "rbd info " + f.Name + "/" + foreign},
		{"a key of a later type", func(s *step) { s.Key = rbdtest.NewAES256KKey().Reveal() }, "invalid", "a key of type aes256k"},
		{"another cluster than the volume's", func(s *step) { s.FSID = "5e0d1c0a-1111-4222-8333-944455556666" }, "other cluster", ceph.FSID},
		{"the first one again", func(*step) {}, "", ""},
	}
	var steps bytes.Buffer
	for _, row := range rows {
		s := plain
		s.Monitors = append([]string{}, plain.Monitors...)
		row.change(&s)
		f.Must(json.NewEncoder(&steps).Encode(s))
	}
	_, mapper := program(f, "mapper")
	out, err := suite.OnNode(t.Context(), steps.String(), mapper)
	f.Must(err)
	outcomes := json.NewDecoder(strings.NewReader(out))
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var o outcome
			if err := outcomes.Decode(&o); errors.Is(err, io.EOF) {
				t.Fatal("the program ended before")
			} else if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %s", o.Took.Round(time.Millisecond), o.Error)
			if !slices.Contains(strings.Split(row.kind, "|"), o.Kind) || !strings.Contains(o.Error, row.text) || row.kind == "" && o.Error != "" {
				t.Errorf("got %q: %s, want %q with %q", o.Kind, o.Error, row.kind, row.text)
			}
			d := o.Device
			if row.kind == "" && (d.FSID != ceph.FSID || d.Pool != f.Name || d.SizeBytes != 64<<20 || d.Major == 0 ||
				!d.Ours || !strings.HasPrefix(d.ClientAddr, "10.77.0.2:0/")) {
				t.Errorf("got %+v", d)
			}
			if o.Keys != 0 {
				t.Errorf("the kernel still has %d keys", o.Keys)
			}
		})
	}
}
