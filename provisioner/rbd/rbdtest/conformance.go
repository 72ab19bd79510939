// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"errors"
	"strings"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Harness is a cluster and what the suite needs to do to it beside the calls of
// package rbd. The functions fail the test themselves, and are called from
// several goroutines. Where a comment says so, a nil function skips the tests
// that need it.
type Harness struct {
	// NewConnector returns a Connector that the test's cleanup closes.
	NewConnector func(t *testing.T) rbd.Connector

	// Admin may do everything, Restricted everything in Pool, NoCaps nothing
	// but connect.
	Admin, Restricted, NoCaps rbd.Credentials
	// Pool and OtherPool are pools for images and for data.
	Pool, OtherPool string
	// ErasurePool is an erasure-coded pool for data, NoDataPool one that can't
	// be overwritten. Empty when there is none.
	ErasurePool, NoDataPool string
	// DeadMonitor is an address where nobody listens.
	DeadMonitor string

	// AddPool makes a pool for images, RemovePool removes it.
	AddPool, RemovePool func(t *testing.T, pool string)
	// AddUser makes a user that may do everything, or gives it a new key.
	AddUser func(t *testing.T, user string) rbd.Credentials
	// SetFull returns when a pool is full, or is so no more.
	SetFull func(t *testing.T, pool string, full bool)
	// Watch makes a client watch an image until stop is called, and returns
	// its address.
	Watch func(t *testing.T, pool, image string) (address string, stop func())
	// Snapshot makes a snapshot of an image, that remove removes.
	Snapshot func(t *testing.T, pool, image, snapshot string) (remove func())
	// Write writes into the beginning of an image.
	Write func(t *testing.T, pool, image string)
	// Trash returns the names of the images in a pool's trash.
	Trash func(t *testing.T, pool string) []string
	// AddRemains leaves remains of an image that is not there.
	AddRemains func(t *testing.T, pool, image string, remains Remains)
	// CutOffMove moves an image to the trash as a client does that dies before
	// the end of that: it has no name any more, but its entry says that it is
	// being moved.
	CutOffMove func(t *testing.T, pool, image string)
	// Manager may do everything, and also ask the manager for work; Admin need
	// not. RunManager lets the manager work; nil when it does by itself.
	Manager    rbd.Credentials
	RunManager func()
	// Pause stops the OSDs until resume is called. No other test runs
	// meanwhile.
	Pause func(t *testing.T) (resume func())
	// Disconnect shuts out the connections of a Connector that NewConnector
	// made, or of everybody: no other test runs meanwhile.
	Disconnect func(t *testing.T, c rbd.Connector)
}

// Conformance holds a Connector to the contract of package rbd. It leaves
// images behind.
func Conformance(t *testing.T, h Harness) {
	s := suite{h}
	// Alone, for they stop the OSDs under everybody, and shut clients out: the
	// others are parallel and wait until this function has returned.
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
		{"SnapshotImage", s.testSnapshotImage},
		{"CloneImage", s.testCloneImage},
		{"ClonesGo", s.testClonesGo},
		{"HandOverTrashed", s.testHandOverTrashed},
		{"Written", s.testWritten},
		{"Notes", s.testNotes},
		{"NotesFaults", s.testNotesFaults},
		{"Names", s.testNames},
		{"Permissions", s.testPermissions},
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

// open returns an open pool, of a connection of its own.
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
	image.ID = "" // any will do
	return image
}

func remove(t *testing.T, p rbd.Pool, name string) {
	t.Helper()
	if err := p.RemoveImage(t.Context(), name); err != nil {
		t.Fatalf("remove image %q: %v", name, err)
	}
}

// wantError checks that err wraps want, and that its text is one for an event:
// what was attempted in front, the sentinel's words behind, no error number and
// no key.
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
