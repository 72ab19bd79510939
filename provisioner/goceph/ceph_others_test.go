// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// openPool opens a pool with a connection of its own.
func (c *ceph) openPool(t *testing.T, pool string) rbd.Pool {
	t.Helper()
	cluster, err := newTestConnector(t, Config{}).Connect(t.Context(), c.admin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	p, err := cluster.OpenPool(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
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
			p := c.openPool(t, pool)
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
