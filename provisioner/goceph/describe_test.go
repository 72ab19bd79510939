// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	librbd "github.com/ceph/go-ceph/rbd"
	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// testDescribeLikeLibrbd checks that images are described as librbd does it, and
// that librbd is asked about all but plain ones.
func (c *ceph) testDescribeLikeLibrbd(t *testing.T) {
	const pool = "described"
	c.addPool(t, pool)
	p := &radosPool{conn: c.conn, io: c.ioctx(t, c.conn, pool)}
	run := func(t *testing.T, args ...string) {
		t.Helper()
		if out, err := c.rig.Run(t.Context(), "rbd", args...); err != nil {
			t.Fatalf("rbd %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	spec := rbd.ImageSpec{SizeBytes: 1 << 30}
	for _, test := range []struct {
		name  string
		spec  rbd.ImageSpec
		make  func(t *testing.T, name string)
		plain bool
	}{
		{name: "new", spec: spec, plain: true},
		{name: "of-no-size", plain: true},
		{name: "of-an-odd-size", spec: rbd.ImageSpec{SizeBytes: 12345}, plain: true},
		{name: "large", spec: rbd.ImageSpec{SizeBytes: 1 << 50}, plain: true},
		{name: "data-pool", spec: rbd.ImageSpec{SizeBytes: 1 << 20, DataPool: "erasure"}, plain: true},
		{name: "metadata", spec: spec, plain: true, make: func(t *testing.T, name string) {
			entries := map[string]string{"a": "", "with blanks, ü and \n": "\"värde\"\n", "conf_rbd_cache": "false",
				"long": strings.Repeat("long ", 1000)}
			if err := p.setMetadataOpen(name, entries); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "grown", spec: spec, plain: true, make: func(t *testing.T, name string) {
			run(t, "resize", pool+"/"+name, "--size", "3G")
		}},
		{name: "renamed", spec: spec, plain: true, make: func(t *testing.T, name string) {
			run(t, "rename", pool+"/"+name, pool+"/other")
			run(t, "rename", pool+"/other", pool+"/"+name)
		}},
		{name: "watched", spec: spec, plain: true, make: func(t *testing.T, name string) {
			c.watch(t, pool, name)
			c.watch(t, pool, name)
		}},
		{name: "locked", spec: spec, plain: true, make: func(t *testing.T, name string) {
			run(t, "lock", "add", pool+"/"+name, "lock")
		}},
		{name: "many-entries", spec: spec, make: func(t *testing.T, name string) {
			entries := map[string]string{}
			for i := range headerKeys {
				entries[fmt.Sprint("key-", i)] = "value"
			}
			if err := p.setMetadata(name, entries); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "snapshot", spec: spec, make: func(t *testing.T, name string) { c.snapshot(t, pool, name, "s") }},
		{name: "snapshot-gone", spec: spec, plain: true, make: func(t *testing.T, name string) { c.snapshot(t, pool, name, "s")() }},
		{name: "clone", make: func(t *testing.T, name string) {
			run(t, "create", pool+"/source", "--size", "1M", "--image-feature", "layering")
			run(t, "snap", "create", pool+"/source@s")
			run(t, "snap", "protect", pool+"/source@s")
			run(t, "remove", pool+"/"+name)
			run(t, "clone", pool+"/source@s", pool+"/"+name, "--image-feature", "layering")
		}},
		{name: "in-a-group", spec: spec, make: func(t *testing.T, name string) {
			run(t, "group", "create", pool+"/group")
			run(t, "group", "image", "add", pool+"/group", pool+"/"+name)
		}},
		{name: "with-a-lock-feature", spec: spec, make: func(t *testing.T, name string) {
			run(t, "feature", "enable", pool+"/"+name, "exclusive-lock")
		}},
		{name: "striped", make: func(t *testing.T, name string) {
			run(t, "remove", pool+"/"+name)
			run(t, "create", pool+"/"+name, "--size", "1M", "--image-feature", "layering,striping", "--stripe-unit", "4096", "--stripe-count", "2")
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := p.createImage(test.name, test.spec); err != nil {
				t.Fatal(err)
			}
			if test.make != nil {
				test.make(t, test.name)
			}
			want, err := p.imageOpen(test.name)
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.image(test.name)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the descriptions differ (-librbd +ours):\n%s", diff)
			}
			if _, err := p.plainImage(test.name); (err == nil) != test.plain || err != nil && !errors.Is(err, errNotPlain) {
				t.Errorf("got %v, want that it is a plain one: %t", err, test.plain)
			}
		})
	}
	t.Run("no image", func(t *testing.T) {
		c.addRemains(t, pool, "remains", rbdtest.RemainsDirectory)
		for _, name := range []string{"remains", "nobody"} {
			if _, err := p.image(name); !errors.Is(err, librbd.ErrNotFound) {
				t.Errorf("%s: got %v, want that it is not found", name, err)
			}
		}
	})
	t.Run("a data pool that is gone", func(t *testing.T) {
		c.addPool(t, "short-lived")
		if err := p.createImage("poolless", rbd.ImageSpec{SizeBytes: 1 << 20, DataPool: "short-lived"}); err != nil {
			t.Fatal(err)
		}
		c.removePool(t, "short-lived")
		if err := c.conn.WaitForLatestOSDMap(); err != nil {
			t.Fatal(err)
		}
		_, want := p.imageOpen("poolless")
		if _, got := p.image("poolless"); want == nil || got == nil || got.Error() != want.Error() {
			t.Errorf("got %v, librbd says %v", got, want)
		}
	})
}
