// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// group makes an image the member of a new group.
func (c *ceph) group(t *testing.T, pool, image, group string) (leave func()) {
	t.Helper()
	io := c.ioctx(t, c.conn, pool)
	if err := librbd.GroupCreate(io, group); err != nil {
		t.Fatal(err)
	}
	if err := librbd.GroupImageAdd(io, group, io, image); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := librbd.GroupImageRemove(io, group, io, image); err != nil {
			t.Error(err)
		}
	})
}

// openPool opens a pool with a connection of its own.
func (c *ceph) openPool(t *testing.T, creds rbd.Credentials, pool string) rbd.Pool {
	t.Helper()
	return c.managed(t, newTestConnector(t, Config{}), creds, pool)
}

// rbd runs a command, as a person would.
func (c *ceph) rbd(t *testing.T, args ...string) {
	t.Helper()
	if _, err := c.rig.Run(t.Context(), "rbd", args...); err != nil {
		t.Fatal(err)
	}
}

// testDefaults: the defaults of the cluster and of the pool change neither what is made
// nor that what is removed is gone.
func (c *ceph) testDefaults(t *testing.T) {
	defaults := map[string]string{
		"rbd_default_order": "20", "rbd_default_stripe_unit": "65536", "rbd_default_stripe_count": "4",
		"rbd_default_features": "125", "rbd_default_data_pool": "nowhere", "rbd_journal_pool": "nowhere",
		"rbd_default_clone_format": "1", "rbd_move_to_trash_on_remove": "true",
	}
	for name, places := range map[string]struct{ set, unset func(option, value string) }{
		"cluster": {
			func(option, value string) {
				c.command(t, "config set", map[string]any{"who": "client", "name": option, "value": value})
			},
			func(option, _ string) { c.command(t, "config rm", map[string]any{"who": "client", "name": option}) },
		},
		"pool": {
			func(option, value string) { c.rbd(t, "config", "pool", "set", "defaults-pool", option, value) },
			func(option, _ string) { c.rbd(t, "config", "pool", "rm", "defaults-pool", option) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			pool := "defaults-" + name
			c.addPool(t, pool)
			for option, value := range defaults {
				places.set(option, value)
				defer places.unset(option, value)
			}
			io := c.ioctx(t, c.dial(t), pool) // one that knows the configuration
			p := c.openPool(t, c.admin, pool)
			if err := p.CreateImage(t.Context(), "made", rbd.ImageSpec{SizeBytes: 1 << 30}); err != nil {
				t.Fatal(err)
			}
			made, err := p.Image(t.Context(), "made")
			if err != nil {
				t.Fatal(err)
			}
			if err := p.SnapshotImage(t.Context(), made.ID, "s"); err != nil {
				t.Fatal(err)
			}
			if err := p.CloneImage(t.Context(), "clone", rbd.CloneSpec{Source: "made", Snapshot: "s"}); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"made", "clone"} {
				if got, want := layout(t, io, name), "[layering operations] 22 4194304 1"; got != want {
					t.Errorf("%s has the features, order, stripe unit and count %s, want %s", name, got, want)
				}
			}
			if err := p.RemoveImage(t.Context(), "clone"); err != nil {
				t.Error(err)
			}
			if left := c.trash(t, pool); len(left) > 0 {
				t.Errorf("removed images are in the trash: %q", left)
			}
		})
	}
}

// layout returns an image's features, the logarithm of its objects' size, and its stripes.
func layout(t *testing.T, io *rados.IOContext, name string) string {
	t.Helper()
	image, err := librbd.OpenImageReadOnly(io, name, librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = image.Close() }()
	bits, err1 := image.GetFeatures()
	info, err2 := image.Stat()
	unit, err3 := image.GetStripeUnit()
	count, err4 := image.GetStripeCount()
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	features := librbd.FeatureSet(bits)
	return fmt.Sprint(slices.Sorted(slices.Values(features.Names())), info.Order, unit, count)
}

// testHolds: what the snapshots of mirrors and groups are, and that the commands that are
// named work.
func (c *ceph) testHolds(t *testing.T) {
	const pool = "holds"
	c.addPool(t, pool)
	c.addPool(t, "holds-groups")
	p := c.openPool(t, c.addUser(t, "holds", "mon", "profile rbd", "osd", "profile rbd pool="+pool), pool)
	c.rbd(t, "mirror", "pool", "enable", pool, "image")
	for _, test := range []struct {
		name string
		put  [][]string // arguments of rbd; IMAGE is the image's
		held []string
		kept int
	}{
		{"primary", [][]string{{"mirror", "image", "enable", "IMAGE", "snapshot"}}, nil, 1},
		{"demoted", [][]string{
			{"mirror", "image", "enable", "IMAGE", "snapshot"}, {"mirror", "image", "demote", "IMAGE"},
		}, []string{"rbd mirror image disable --force IMAGE"}, 2},
		{"journaled", [][]string{
			{"feature", "enable", "IMAGE", "exclusive-lock", "journaling"}, {"mirror", "image", "enable", "IMAGE", "journal"},
		}, nil, 0},
		{"journaled-demoted", [][]string{
			{"feature", "enable", "IMAGE", "exclusive-lock", "journaling"}, {"mirror", "image", "enable", "IMAGE", "journal"},
			{"mirror", "image", "demote", "IMAGE"},
		}, []string{"rbd mirror image disable --force IMAGE"}, 0},
		{"only-journaled", [][]string{{"feature", "enable", "IMAGE", "exclusive-lock", "journaling"}}, nil, 0},
		{"grouped", [][]string{
			{"group", "create", "holds/g"}, {"group", "image", "add", "holds/g", "IMAGE"}, {"group", "snap", "create", "holds/g@s"},
		}, []string{"rbd group snap rm holds/g@s", "rbd group image rm holds/g IMAGE"}, 1},
		{"left-group", [][]string{
			{"group", "create", "holds/h"}, {"group", "image", "add", "holds/h", "IMAGE"}, {"group", "snap", "create", "holds/h@s"},
			{"group", "image", "rm", "holds/h", "IMAGE"},
		}, []string{"rbd group snap rm holds/h@s"}, 1},
		{"grouped-elsewhere", [][]string{
			{"group", "create", "holds-groups/g"}, {"group", "image", "add", "holds-groups/g", "IMAGE"},
			{"group", "snap", "create", "holds-groups/g@s"},
		}, []string{"rbd group snap rm GROUP@SNAPSHOT", "rbd group image rm GROUP IMAGE"}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := p.CreateImage(t.Context(), test.name, rbd.ImageSpec{SizeBytes: 1 << 20}); err != nil {
				t.Fatal(err)
			}
			here := func(s string) string { return strings.ReplaceAll(s, "IMAGE", pool+"/"+test.name) }
			remove := c.snapshot(t, pool, test.name, "mine")
			for _, args := range test.put {
				for i := range args {
					args[i] = here(args[i])
				}
				c.rbd(t, args...)
			}
			var held []string
			for _, command := range test.held {
				held = append(held, here(command))
			}
			image, err := p.Image(t.Context(), test.name)
			if err != nil {
				t.Fatal(err)
			}
			want := image
			want.Held, want.Kept, want.Snapshots = held, test.kept, []string{"mine"}
			if diff := cmp.Diff(want, image); diff != "" {
				t.Errorf("the image (-want +got):\n%s", diff)
			}
			for _, command := range image.Held {
				// As "rbd info" and "rbd snap ls --all" name them.
				command = strings.ReplaceAll(strings.ReplaceAll(command, "SNAPSHOT", "s"), "GROUP", "holds-groups/g")
				c.rbd(t, strings.Fields(command)[1:]...)
			}
			remove()
			if err := p.TrashImage(t.Context(), test.name, 0); err != nil {
				t.Fatal(err)
			}
			if err := p.RemoveTrashed(t.Context(), image.ID); err != nil {
				t.Error(err)
			}
		})
	}
}
