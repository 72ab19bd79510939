// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"fmt"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// testMeasure logs how long calls take. It fails for none of them: what is slow
// depends on the machine.
func (c *ceph) testMeasure(t *testing.T) {
	ctx := t.Context()
	const rounds = 20
	connector := newTestConnector(t, Config{})
	lap := func(what string, call func(i int) error) {
		t.Helper()
		begin := time.Now()
		for i := range rounds {
			if err := call(i); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: %s each", what, (time.Since(begin) / rounds).Round(10*time.Microsecond))
	}
	lap("connect and close", func(int) error {
		made, err := dial(Config{Timeout: time.Minute}, c.admin)
		if err == nil {
			made.shutdown()
		}
		return err
	})
	cluster, p := openImages(t, connector, c.admin)
	defer cluster.Close()
	defer p.Close()
	lap("connect, sharing", func(int) error {
		again, err := connector.Connect(ctx, c.admin)
		if err == nil {
			again.Close()
		}
		return err
	})
	name := func(i int) string { return fmt.Sprintf("measured-%d", i) }
	lap("create", func(i int) error { return p.CreateImage(ctx, name(i), rbd.ImageSpec{SizeBytes: 1 << 30}) })
	lap("set four metadata entries", func(i int) error {
		return p.SetMetadata(ctx, name(i), map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"})
	})
	lap("describe", func(i int) error { _, err := p.Image(ctx, name(i)); return err })
	lap("remove 1 GiB", func(i int) error { return p.RemoveImage(ctx, name(i)) })
}
