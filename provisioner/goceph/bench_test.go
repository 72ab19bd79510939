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

// BenchmarkOnCeph measures how long calls take on a real cluster, and how much CPU time
// they cost this process. "make bench-ceph" runs it.
func BenchmarkOnCeph(b *testing.B) {
	c := startCeph(b)
	c.addPool(b, "images")
	connector := newTestConnector(b, Config{})
	cluster, pool := openImages(b, connector, c.admin)
	defer cluster.Close()
	defer pool.Close()
	b.Run("Connect", func(b *testing.B) { c.benchConnections(b, connector) })
	b.Run("Image", func(b *testing.B) { c.benchImages(b, pool) })
	b.Run("Trash", func(b *testing.B) { c.benchTrash(b, pool) })
	b.Run("Notes", func(b *testing.B) { benchNotes(b, pool) })
	b.Run("Manager", func(b *testing.B) { c.benchManager(b, c.managed(b, connector, c.admin, "images")) })
}

// each runs a benchmark of a call. It does not measure prepare, which gets ready for all
// rounds.
func each(b *testing.B, name string, prepare func(b *testing.B), call func(b *testing.B, i int) error) {
	b.Run(name, func(b *testing.B) {
		if prepare != nil {
			prepare(b)
		}
		cpu := cpuTime(b)
		b.ResetTimer()
		for i := range b.N {
			if err := call(b, i); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		b.ReportMetric(float64(cpuTime(b)-cpu)/float64(b.N), "cpu-ns/op")
	})
}

// cpuTime is the CPU time that this process has used so far, including librados's threads.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func (c *ceph) benchConnections(b *testing.B, connector *Connector) {
	each(b, "New", nil, func(*testing.B, int) error {
		made, err := dial(Config{Timeout: time.Minute}, c.admin)
		if err == nil {
			made.shutdown()
		}
		return err
	})
	each(b, "Shared", nil, func(b *testing.B, _ int) error {
		again, err := connector.Connect(b.Context(), c.admin)
		if err == nil {
			again.Close()
		}
		return err
	})
	each(b, "Manager", nil, func(*testing.B, int) error {
		made, err := dialManager(Config{Timeout: time.Minute}, c.admin)
		if err == nil {
			made.shutdown()
		}
		return err
	})
}

// imageNames makes names that no other image has, not even in another run of the same
// benchmark.
func imageNames() func(i int) string {
	run := time.Now().UnixNano()
	return func(i int) string { return fmt.Sprintf("bench-%d-%d", run, i) }
}

func (c *ceph) benchImages(b *testing.B, p rbd.Pool) {
	var name func(i int) string
	create := func(b *testing.B, i int) error {
		return p.CreateImage(b.Context(), name(i), rbd.ImageSpec{SizeBytes: 1 << 30})
	}
	renamed := func(*testing.B) { name = imageNames() }
	created := func(b *testing.B) {
		renamed(b)
		for i := range b.N {
			if err := create(b, i); err != nil {
				b.Fatal(err)
			}
		}
	}
	pool := &radosPool{conn: c.conn, io: c.ioctx(b, c.conn, "images")}
	entries := map[string]string{"a": "1", "b": "2", "c": "3", "d": "4"}

	each(b, "Create", renamed, create)
	each(b, "SetMetadata", created, func(b *testing.B, i int) error { return p.SetMetadata(b.Context(), name(i), entries) })
	each(b, "SetMetadataWithLibrbd", created, func(_ *testing.B, i int) error { return pool.setMetadataOpen(name(i), entries) })
	each(b, "OpenToRead", created, func(_ *testing.B, i int) error {
		image, err := librbd.OpenImageReadOnly(pool.io, name(i), librbd.NoSnapshot)
		if err == nil {
			err = image.Close()
		}
		return err
	})
	each(b, "Describe", created, func(b *testing.B, i int) error { _, err := p.Image(b.Context(), name(i)); return err })
	each(b, "Written", created, func(b *testing.B, i int) error { _, err := p.Written(b.Context(), name(i)); return err })
	each(b, "MoveToTrash", created, func(b *testing.B, i int) error { return p.TrashImage(b.Context(), name(i), 0) })
}

// intoTrashAll moves as many images to the trash as a benchmark has rounds, and returns
// their IDs.
func (c *ceph) intoTrashAll(b *testing.B, p rbd.Pool) []string {
	name, ids := imageNames(), make([]string, b.N)
	for i := range ids {
		ids[i] = c.intoTrash(b, p, name(i), 1<<30)
	}
	return ids
}

func (c *ceph) benchTrash(b *testing.B, p rbd.Pool) {
	var ids []string
	filled := func(b *testing.B) { ids = c.intoTrashAll(b, p) }
	each(b, "Find", filled, func(b *testing.B, i int) error { _, err := p.Trashed(b.Context(), ids[i]); return err })
	each(b, "Remove", filled, func(b *testing.B, i int) error { return p.RemoveTrashed(b.Context(), ids[i]) })
}

// benchNotes uses notes of 200 bytes, and objects that have 2,000 of them.
func benchNotes(b *testing.B, p rbd.Pool) {
	const many = 2000
	object := func(i int) string { return fmt.Sprintf("bench-%d", i) }
	key := func(i int) string { return fmt.Sprintf("kubernetes-dynamic-pvc-8a6b7f0e-0000-4000-8000-%012d", i) }
	keys, notes := make([]string, many), map[string][]byte{}
	for i := range keys {
		keys[i] = key(i)
		notes[keys[i]] = make([]byte, 200)
	}
	filled := func(b *testing.B) {
		for i := range b.N {
			if err := p.SetNotes(b.Context(), object(i), notes); err != nil {
				b.Fatal(err)
			}
		}
	}
	each(b, "Set", nil, func(b *testing.B, i int) error {
		return p.SetNotes(b.Context(), "bench", map[string][]byte{key(i): make([]byte, 200)})
	})
	each(b, "Read2000", filled, func(b *testing.B, i int) error { _, err := p.Notes(b.Context(), object(i)); return err })
	each(b, "Remove2000", filled, func(b *testing.B, i int) error { return p.RemoveNotes(b.Context(), object(i), keys...) })
}

// benchManager measures what it costs to hand images over to Ceph's manager, and how long
// their removal takes.
func (c *ceph) benchManager(b *testing.B, p rbd.Pool) {
	var ids []string
	filled := func(b *testing.B) { ids = c.intoTrashAll(b, p) }
	handOver := func(b *testing.B, i int) error { return p.HandOverTrashed(b.Context(), ids[i]) }
	each(b, "HandOver", filled, handOver)
	each(b, "Remove", func(b *testing.B) {
		filled(b)
		for i := range ids {
			if err := handOver(b, i); err != nil {
				b.Fatal(err)
			}
		}
	}, func(b *testing.B, i int) error {
		return rigs.Eventually(b.Context(), time.Minute, func(ctx context.Context) error {
			if _, err := p.Trashed(ctx, ids[i]); !errors.Is(err, rbd.ErrImageNotFound) {
				return errors.Join(errors.New("it is in the trash"), err)
			}
			return nil
		})
	})
}
