// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// everyNotesCall makes each call about the notes of an object once.
func everyNotesCall(ctx context.Context, p rbd.Pool, object string) map[string]error {
	_, err := p.Notes(ctx, object)
	return map[string]error{
		"read":   err,
		"set":    p.SetNotes(ctx, object, map[string][]byte{"key": []byte("value")}),
		"remove": p.RemoveNotes(ctx, object, "key"),
	}
}

func checkNotes(t *testing.T, p rbd.Pool, object string, want map[string][]byte, keys ...string) {
	t.Helper()
	got, err := p.Notes(t.Context(), object, keys...)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the notes %q of %s differ (-want +got):\n%s", keys, object, diff)
	}
}

func setNotes(t *testing.T, p rbd.Pool, object string, notes map[string][]byte) {
	t.Helper()
	if err := p.SetNotes(t.Context(), object, notes); err != nil {
		t.Fatal(err)
	}
}

func removeNotes(t *testing.T, p rbd.Pool, object string, keys ...string) {
	t.Helper()
	if err := p.RemoveNotes(t.Context(), object, keys...); err != nil {
		t.Fatal(err)
	}
}

// testNotes runs as a user with only the caps that images need.
func (s suite) testNotes(t *testing.T) {
	t.Parallel()
	p := s.open(t, s.Restricted, s.Pool)
	const object = "notes.of-this/test ü"
	none := map[string][]byte{}

	checkNotes(t, p, object, none)
	removeNotes(t, p, object, "no such object")
	checkNotes(t, p, object, none)
	want := map[string][]byte{"a": []byte("one"), "b": {}, "key with blanks, ü and \n": {0, 1, 255}}
	setNotes(t, p, object, want)
	checkNotes(t, p, object, want)
	for _, nothing := range []map[string][]byte{nil, none} {
		setNotes(t, p, object, nothing)
	}
	removeNotes(t, p, object)
	checkNotes(t, p, object, want)
	checkNotes(t, p, object, map[string][]byte{"b": {}}, "b")
	checkNotes(t, p, object, map[string][]byte{"a": []byte("one"), "b": {}}, "b", "not there", "a")
	checkNotes(t, p, object, none, "not there")
	checkNotes(t, p, "no such object", none, "a")

	change := map[string][]byte{"a": []byte("two"), "c": []byte(strings.Repeat("long ", 1000))}
	setNotes(t, p, object, change)
	maps.Copy(want, change)
	checkNotes(t, p, object, want)
	removeNotes(t, p, object, "b", "not there", "c")
	delete(want, "b")
	delete(want, "c")
	checkNotes(t, p, object, want)

	t.Run("another object", func(t *testing.T) {
		setNotes(t, p, object+"2", map[string][]byte{"a": []byte("other")})
		checkNotes(t, p, object, want)
		removeNotes(t, p, object+"2", "a")
		checkNotes(t, p, object+"2", none)
		checkNotes(t, p, object, want)
	})
	t.Run("many from many", func(t *testing.T) {
		// More notes than an OSD returns in one answer.
		const writers, each = 20, 100
		many := map[string][]byte{}
		var wg sync.WaitGroup
		for w := range writers {
			batch := map[string][]byte{}
			for i := range each {
				batch[fmt.Sprintf("writer-%d-%d", w, i)] = fmt.Appendf(nil, "note %d", i)
			}
			maps.Copy(many, batch)
			wg.Go(func() {
				if err := p.SetNotes(t.Context(), "many", batch); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		checkNotes(t, p, "many", many)
		removeNotes(t, p, "many", slices.Collect(maps.Keys(many))...)
		checkNotes(t, p, "many", none)
	})
	t.Run("a pool that was removed", func(t *testing.T) {
		s.AddPool(t, "notes-removed")
		p := s.open(t, s.Admin, "notes-removed")
		setNotes(t, p, object, want)
		s.RemovePool(t, "notes-removed")
		err := p.SetNotes(t.Context(), object, want)
		// OSDs hear of the removal from the monitors, and serve the pool until then.
		often, limit := time.NewTicker(50*time.Millisecond), time.Now().Add(30*time.Second)
		for ; err == nil && time.Now().Before(limit); <-often.C {
			err = p.SetNotes(t.Context(), object, want)
		}
		wantError(t, err, rbd.ErrPoolNotFound, `set notes "`+object+`" in pool "notes-removed": `)
		checkNotes(t, p, object, none)
		removeNotes(t, p, object, "a")
	})
}

func (s suite) testNotesFaults(t *testing.T) {
	t.Parallel()
	cluster := s.connect(t, s.NewConnector(t), s.Admin)
	p := openPool(t, cluster, s.Pool)
	for _, name := range []string{"", "cut\x00short"} {
		for call, err := range everyNotesCall(t.Context(), p, name) {
			wantError(t, err, rbd.ErrNotSupported, call+" notes ")
		}
		err := p.SetNotes(t.Context(), "keys", map[string][]byte{name: nil, "good": nil})
		wantError(t, err, rbd.ErrNotSupported, `set notes "keys" in pool "`+s.Pool+`": `)
	}
	checkNotes(t, p, "keys", map[string][]byte{})

	if s.NoDataPool != "" {
		t.Run("an erasure-coded pool", func(t *testing.T) {
			p := openPool(t, cluster, s.NoDataPool)
			err := p.SetNotes(t.Context(), "erasure", map[string][]byte{"a": nil})
			wantError(t, err, rbd.ErrErasureCoded, `set notes "erasure" in pool "`+s.NoDataPool+`": `)
		})
	}
	t.Run("a full pool", func(t *testing.T) {
		s.AddPool(t, "notes-full")
		p := openPool(t, cluster, "notes-full")
		setNotes(t, p, "before", map[string][]byte{"a": nil, "b": nil})
		s.SetFull(t, "notes-full", true)
		setNotes(t, p, "after", map[string][]byte{"a": nil})
		// Ceph may allow calls that take no room.
		if err := p.RemoveNotes(t.Context(), "before", "a"); err != nil {
			wantError(t, err, rbd.ErrPoolFull, `remove notes "before" in pool "notes-full": `)
		}
		s.SetFull(t, "notes-full", false)
		removeNotes(t, p, "before", "a")
		checkNotes(t, p, "before", map[string][]byte{"b": {}})
	})
	t.Run("a context that has ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for call, err := range everyNotesCall(ctx, p, "cancelled") {
			wantInterrupted(t, err, context.Canceled, call+" notes ")
		}
		checkNotes(t, p, "cancelled", map[string][]byte{})
	})
	t.Run("a pool that was closed", func(t *testing.T) {
		p, err := cluster.OpenPool(t.Context(), s.Pool)
		if err != nil {
			t.Fatal(err)
		}
		p.Close()
		for call, err := range everyNotesCall(t.Context(), p, "closed") {
			if err == nil {
				t.Errorf("%s: no error", call)
			}
		}
	})
}

// testNotesDeadline stops the OSDs: calls end at their deadlines, and do not wait for one
// another.
func (s suite) testNotesDeadline(t *testing.T) {
	p := s.open(t, s.Admin, s.Pool)
	setNotes(t, p, "paused", map[string][]byte{"before": nil})
	resume := s.Pause(t)
	defer resume() // harmless if it was called already
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for call, err := range everyNotesCall(ctx, p, "paused") {
		wantInterrupted(t, err, context.DeadlineExceeded, call+` notes "paused"`)
		if errors.Is(err, rbd.ErrImageBusy) {
			t.Errorf("%s: it waited for a name: %v", call, err)
		}
	}
	resume()
	setNotes(t, p, "paused", map[string][]byte{"after": nil})
	notes, err := p.Notes(t.Context(), "paused")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"before", "after"} {
		if _, found := notes[key]; !found {
			t.Errorf("the note %q is gone", key)
		}
	}
}

func (s suite) testWritten(t *testing.T) {
	t.Parallel()
	p := s.open(t, s.Restricted, s.Pool)
	check := func(image string, want bool) {
		t.Helper()
		got, err := p.Written(t.Context(), image)
		if err != nil || got != want {
			t.Errorf("image %s: got %v, %v, want %v", image, got, err, want)
		}
	}
	for name, size := range map[string]uint64{"nothing": 0, "a-byte": 1, "a-mebibyte": 1 << 20, "a-tebibyte": 1 << 40} {
		create(t, p, "empty-"+name, rbd.ImageSpec{SizeBytes: size})
		check("empty-"+name, false)
	}
	for name, size := range map[string]uint64{"a-mebibyte": 1 << 20, "a-tebibyte": 1 << 40} {
		create(t, p, "written-"+name, rbd.ImageSpec{SizeBytes: size})
		s.Write(t, s.Pool, "written-"+name)
		check("written-"+name, true)
	}
	_, err := p.Written(t.Context(), "not-there")
	wantError(t, err, rbd.ErrImageNotFound, `look into image "not-there" in pool "`+s.Pool+`": `)
}
