// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	librbd "github.com/ceph/go-ceph/rbd"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	rigs "ceph.com/rbd-provisioner/test/cluster"
)

// testMeasure logs how long calls take. It fails for none of them: what is slow
// depends on the machine.
func (c *ceph) testMeasure(t *testing.T) {
	ctx := t.Context()
	const rounds = 100
	connector := newTestConnector(t, Config{})
	lap := func(what string, call func(i int) error) {
		t.Helper()
		begin, cpu := time.Now(), cpuTime(t)
		for i := range rounds {
			if err := call(i); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: %s each, %s of CPU", what, (time.Since(begin) / rounds).Round(10*time.Microsecond),
			((cpuTime(t) - cpu) / rounds).Round(10*time.Microsecond))
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
	pools := &radosPool{conn: c.conn, io: c.ioctx(t, c.conn, "images")}
	lap("the same with librbd", func(i int) error {
		return pools.setMetadataOpen(name(i), map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"})
	})
	lap("open and close, to read", func(i int) error {
		image, err := librbd.OpenImageReadOnly(pools.io, name(i), librbd.NoSnapshot)
		if err == nil {
			err = image.Close()
		}
		return err
	})
	ids := make([]string, rounds)
	lap("describe", func(i int) error {
		image, err := p.Image(ctx, name(i))
		ids[i] = image.ID
		return err
	})
	lap("look into", func(i int) error { _, err := p.Written(ctx, name(i)); return err })
	c.measureNotes(t, p)
	lap("move to the trash", func(i int) error { return p.TrashImage(ctx, name(i), 0) })
	lap("look up in the trash", func(i int) error { _, err := p.Trashed(ctx, ids[i]); return err })
	lap("remove 1 GiB from the trash", func(i int) error { return p.RemoveTrashed(ctx, ids[i]) })
	c.measureManager(t, lap)
}

// measureNotes logs what notes cost, also in CPU time of this process.
func (c *ceph) measureNotes(t *testing.T, p rbd.Pool) {
	ctx := t.Context()
	const object, many = "measured", 2000
	lap := func(what string, n time.Duration, call func() error) {
		t.Helper()
		begin, cpu := time.Now(), cpuTime(t)
		if err := call(); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s each, %s of CPU", what, (time.Since(begin) / n).Round(time.Microsecond), ((cpuTime(t) - cpu) / n).Round(time.Microsecond))
	}
	keys := make([]string, many)
	for i := range keys {
		keys[i] = fmt.Sprintf("kubernetes-dynamic-pvc-8a6b7f0e-0000-4000-8000-%012d", i)
	}
	lap("set 2000 notes of 200 bytes, one by one", many, func() error {
		for _, key := range keys {
			if err := p.SetNotes(ctx, object, map[string][]byte{key: make([]byte, 200)}); err != nil {
				return err
			}
		}
		return nil
	})
	lap("read 2000 notes", 1, func() error { _, err := p.Notes(ctx, object); return err })
	lap("remove 2000 notes at once", 1, func() error { return p.RemoveNotes(ctx, object, keys...) })
}

// cpuTime is what this process has used so far, librados's threads included.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// measureManager logs what it costs to leave images to the manager, and how long
// that takes for them.
func (c *ceph) measureManager(t *testing.T, lap func(what string, call func(i int) error)) {
	ctx := t.Context()
	lap("connect to the manager and close", func(int) error {
		made, err := dialManager(Config{Timeout: time.Minute}, c.admin)
		if err == nil {
			made.shutdown()
		}
		return err
	})
	p := c.managed(t, newTestConnector(t, Config{}), c.admin, "images")
	var ids []string
	lap("create, describe, move to the trash", func(i int) error {
		name := fmt.Sprintf("managed-%d", i)
		err := p.CreateImage(ctx, name, rbd.ImageSpec{SizeBytes: 1 << 30})
		if err != nil {
			return err
		}
		image, err := p.Image(ctx, name)
		ids = append(ids, image.ID)
		return errors.Join(err, p.TrashImage(ctx, name, 0))
	})
	lap("hand over to the manager", func(i int) error { return p.HandOverTrashed(ctx, ids[i]) })
	lap("wait until it has removed it", func(i int) error {
		return rigs.Eventually(ctx, time.Minute, func(ctx context.Context) error {
			if _, err := p.Trashed(ctx, ids[i]); !errors.Is(err, rbd.ErrImageNotFound) {
				return errors.Join(errors.New("it is in the trash"), err)
			}
			return nil
		})
	})
}
