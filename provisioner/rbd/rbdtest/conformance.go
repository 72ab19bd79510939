// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"errors"
	"strings"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Harness is a cluster, with functions that do to it what package rbd can't. They fail the
// test themselves. Several goroutines call them.
type Harness struct {
	// NewConnector returns a Connector that the test's cleanup closes.
	NewConnector func(t *testing.T) rbd.Connector

	// Admin has all rights, Restricted has all rights in Pool only, and NoCaps can only
	// connect. Silent says that NoCaps gets no answer then, instead of a refusal.
	Admin, Restricted, NoCaps rbd.Credentials
	Silent                    bool
	// NoMonitor has all rights but those on monitors, and DeafMonitor has there only one
	// that does not allow reading.
	NoMonitor, DeafMonitor rbd.Credentials
	// Pool and OtherPool are pools for images and for data.
	Pool, OtherPool string
	// ErasurePool is an erasure-coded pool for data, NoDataPool one that can't be
	// overwritten. Empty for none.
	ErasurePool, NoDataPool string
	// DeadMonitor is an address where no process listens.
	DeadMonitor string

	// AddPool makes a pool for images, RemovePool removes it.
	AddPool, RemovePool func(t *testing.T, pool string)
	// AddUser makes a user with all rights, or gives an existing one a new key.
	AddUser func(t *testing.T, user string) rbd.Credentials
	// SetFull makes a pool full, or takes that back, and waits until the cluster acts on
	// it.
	SetFull func(t *testing.T, pool string, full bool)
	// Watch makes a client watch an image until stop is called, and returns the client's
	// address.
	Watch func(t *testing.T, pool, image string) (address string, stop func())
	// Snapshot makes a snapshot of an image; remove removes it.
	Snapshot func(t *testing.T, pool, image, snapshot string) (remove func())
	// Group makes an image the member of a group of the same pool until leave is called.
	Group func(t *testing.T, pool, image, group string) (leave func())
	// Write writes to the beginning of an image.
	Write func(t *testing.T, pool, image string)
	// Trash returns the names of the images in a pool's trash.
	Trash func(t *testing.T, pool string) []string
	// AddRemains leaves remains of an image that does not exist.
	AddRemains func(t *testing.T, pool, image string, remains Remains)
	// CutOffMove moves an image to the trash as if the client died before the end of the
	// move: the image has no name any more, but its entry says that the move still runs.
	CutOffMove func(t *testing.T, pool, image string)
	// Manager has all rights, including that to ask the manager for work, which Admin may
	// lack. RunManager lets the manager work; nil if it works by itself.
	Manager    rbd.Credentials
	RunManager func()
	// Pause stops the OSDs until resume is called. No other test runs in the meantime.
	Pause func(t *testing.T) (resume func())
	// Disconnect shuts out the connections of a Connector that NewConnector made, or all
	// connections: no other test runs in the meantime.
	Disconnect func(t *testing.T, c rbd.Connector)
}

// Conformance holds a Connector to the contract of package rbd. It leaves
// images behind.
func Conformance(t *testing.T, h Harness) {
	s := suite{h}
	// These run alone, since they stop the OSDs for all clients, and shut clients out. The
	// others are parallel: they wait until this function has returned.
	t.Run("Deadline", s.testDeadline)
	t.Run("NotesDeadline", s.testNotesDeadline)
	t.Run("ConnectionLost", s.testConnectionLost)
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Connect", s.testConnect},
		{"OpenPool", s.testOpenPool},
		{"CreateImage", s.testCreateImage},
		{"DataPool", s.testDataPool},
		{"Metadata", s.testMetadata},
		{"GrowImage", s.testGrowImage},
		{"RemoveImage", s.testRemoveImage},
		{"InterruptedRemoval", s.testInterruptedRemoval},
		{"FinishRemovals", s.testFinishRemovals},
		{"Remains", s.testRemains},
		{"TrashImage", s.testTrashImage},
		{"RemoveTrashed", s.testRemoveTrashed},
		{"ShrinkTrashed", s.testShrinkTrashed},
		{"SnapshotImage", s.testSnapshotImage},
		{"CloneImage", s.testCloneImage},
		{"ClonesGo", s.testClonesGo},
		{"HandOverTrashed", s.testHandOverTrashed},
		{"Written", s.testWritten},
		{"Notes", s.testNotes},
		{"NotesFaults", s.testNotesFaults},
		{"Names", s.testNames},
		{"Permissions", s.testPermissions},
		{"NoCaps", s.testNoCaps},
		{"Full", s.testFull},
		{"Concurrency", s.testConcurrency},
		{"Context", s.testContext},
	} {
		t.Run(test.name, test.run)
	}
}

type suite struct{ Harness }

// connect returns a connection that the test's cleanup closes.
func (s suite) connect(t *testing.T, c rbd.Connector, creds rbd.Credentials) rbd.Cluster {
	t.Helper()
	cluster, err := c.Connect(t.Context(), creds)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(cluster.Close)
	return cluster
}

// open returns an open pool with a connection of its own.
func (s suite) open(t *testing.T, creds rbd.Credentials, pool string) rbd.Pool {
	t.Helper()
	return openPool(t, s.connect(t, s.NewConnector(t), creds), pool)
}

func openPool(t *testing.T, cluster rbd.Cluster, pool string) rbd.Pool {
	t.Helper()
	p, err := cluster.OpenPool(t.Context(), pool)
	if err != nil {
		t.Fatalf("open pool: %v", err)
	}
	t.Cleanup(p.Close)
	return p
}

func create(t *testing.T, p rbd.Pool, name string, spec rbd.ImageSpec) {
	t.Helper()
	if err := p.CreateImage(t.Context(), name, spec); err != nil {
		t.Fatalf("create image %q: %v", name, err)
	}
}

func describe(t *testing.T, p rbd.Pool, name string) rbd.Image {
	t.Helper()
	image, err := p.Image(t.Context(), name)
	if err != nil {
		t.Fatalf("describe image %q: %v", name, err)
	}
	if image.ID == "" {
		t.Errorf("image %q has no ID", name)
	}
	image.ID = "" // it may be any
	return image
}

func remove(t *testing.T, p rbd.Pool, name string) {
	t.Helper()
	if err := p.RemoveImage(t.Context(), name); err != nil {
		t.Fatalf("remove image %q: %v", name, err)
	}
}

// wantError checks that err wraps want, and that its text is fit for an event: it begins
// with what was attempted, ends with the sentinel's words, and has no error number and no
// key.
func wantError(t *testing.T, err, want error, attempt string, keys ...rbd.Key) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got the error %v, want %q", attempt, err, want)
		return
	}
	text := err.Error()
	if !strings.HasPrefix(text, attempt) || !strings.Contains(text, want.Error()) {
		t.Errorf("got the error %q, want it to begin with %q and to say %q", text, attempt, want)
	}
	if strings.Contains(text, "ret=") || strings.Contains(text, "errno") {
		t.Errorf("the error shows an error number: %q", text)
	}
	for _, key := range keys {
		if strings.Contains(text, key.Reveal()) {
			t.Errorf("the error shows a key: %q", text)
		}
	}
}
