// SPDX-License-Identifier: Apache-2.0

package journal_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// newPool returns a pool of a cluster in memory.
func newPool(t *testing.T) rbd.Pool {
	t.Helper()
	ceph := rbdtest.NewCluster("10.0.0.1:6789")
	ceph.AddPool("rbd")
	cluster, err := ceph.Connect(t.Context(), ceph.AddUser("kube", rbdtest.Caps{AllPools: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	pool, err := cluster.OpenPool(t.Context(), "rbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// TestObjects: no two provisioners share an object, nor do the two kinds of notes.
func TestObjects(t *testing.T) {
	seen := map[string]string{}
	for kind, object := range map[string]func(string, string, string) string{
		"intents":  func(uid, name, identity string) string { return journal.New(uid, name, identity).Intents.Object },
		"removals": func(uid, name, identity string) string { return journal.New(uid, name, identity).Removals.Object },
	} {
		for _, args := range [][3]string{
			{"1", "ceph.com/rbd", "here"}, {"2", "ceph.com/rbd", "here"}, {"1", "ceph.com/rbd", "there"},
			{"1", "ceph.com/rb", "dhere"}, {"1", "a b/\x01", "é"},
		} {
			name, of := object(args[0], args[1], args[2]), fmt.Sprint(kind, args)
			if other, taken := seen[name]; taken {
				t.Errorf("%s and %s have the object %q", of, other, name)
			}
			seen[name] = of
			if again := object(args[0], args[1], args[2]); again != name {
				t.Errorf("%s has the objects %q and %q", of, name, again)
			}
			if prefix := "rbd_provisioner." + kind + "." + args[0] + "."; !strings.HasPrefix(name, prefix) || len(name) != len(prefix)+16 {
				t.Errorf("%s has the object %q", of, name)
			}
		}
	}
}

// store is one kind of notes, and two notes of it.
type store struct {
	object string
	write  func(t *testing.T, p rbd.Pool)
	read   func(t *testing.T, p rbd.Pool) (all any, unreadable []string)
	want   any
	clear  func(t *testing.T, p rbd.Pool, keys ...string)
	// keys are those of the two notes, bad are texts that can't be read.
	keys []string
	bad  []string
}

func stores() map[string]store {
	check := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	intents := []journal.Intent{
		{Image: "a", Namespace: "apps", Claim: "data", ClaimUID: "1", Volume: "pvc-1", SizeBytes: 1 << 30, DataPool: "ec"},
		{Image: "b", Namespace: "apps", Claim: "copy", ClaimUID: "2", Volume: "pvc-2", SizeBytes: 1, SourceID: "10ab", SourceVolume: "pvc-1", SourceFSType: "xfs", SourceBytes: 1},
	}
	removals := []journal.Removal{
		{ID: "10", Image: "a", Volume: "pvc-1", At: at.Add(time.Second), SizeBytes: 1},
		{ID: "20", Image: "b", Volume: "pvc-2", At: at, Keep: time.Hour, SizeBytes: 1 << 40, Parent: "10"},
	}
	both := journal.New("1", "ceph.com/rbd", "here")
	j, r := both.Intents, both.Removals
	return map[string]store{
		"intents": {
			object: j.Object, want: intents, keys: []string{"a", "b"},
			write: func(t *testing.T, p rbd.Pool) {
				for _, in := range intents {
					check(t, j.Write(t.Context(), p, in))
				}
			},
			read: func(t *testing.T, p rbd.Pool) (any, []string) {
				all, unreadable, err := j.Read(t.Context(), p)
				check(t, err)
				return all, unreadable
			},
			clear: func(t *testing.T, p rbd.Pool, keys ...string) { check(t, j.Clear(t.Context(), p, keys...)) },
			bad:   []string{"", "{}", "[]", `{"namespace":"apps","claim":"data","claimUID":"1"}`, `{"namespace":"apps","claim":"data","volume":"pvc-1"}`},
		},
		"removals": {
			object: r.Object, want: removals, keys: []string{"10", "20"},
			write: func(t *testing.T, p rbd.Pool) {
				for _, removal := range removals {
					check(t, r.Write(t.Context(), p, removal))
				}
			},
			read: func(t *testing.T, p rbd.Pool) (any, []string) {
				all, unreadable, err := r.Read(t.Context(), p)
				check(t, err)
				return all, unreadable
			},
			clear: func(t *testing.T, p rbd.Pool, keys ...string) { check(t, r.Clear(t.Context(), p, keys...)) },
			bad:   []string{"", "{}", `{"image":"a"}`, `{"image":"a","at":"2026-11-21T10:00:00Z","keep":-1}`, `{"at":"2026-11-21T10:00:00Z"}`},
		},
	}
}

// TestNotes: what was written is read again, sorted by key, and is there until it is
// cleared.
func TestNotes(t *testing.T) {
	for name, s := range stores() {
		t.Run(name, func(t *testing.T) {
			p := newPool(t)
			for range 2 { // writing it again replaces it
				s.write(t, p)
			}
			all, unreadable := s.read(t, p)
			if diff := cmp.Diff(s.want, all); diff != "" || len(unreadable) > 0 {
				t.Errorf("%q can't be read; (-want +got):\n%s", unreadable, diff)
			}
			s.clear(t, p, s.keys[0], "never written")
			s.clear(t, p)
			notes, err := p.Notes(t.Context(), s.object)
			if _, stays := notes[s.keys[1]]; err != nil || !stays || len(notes) != 1 {
				t.Errorf("after one was cleared there are %q, error %v", notes, err)
			}
		})
	}
}

// TestUnreadable: what another version wrote is reported, and does not keep others from being
// read.
func TestUnreadable(t *testing.T) {
	for name, s := range stores() {
		t.Run(name, func(t *testing.T) {
			p := newPool(t)
			s.write(t, p)
			var want []string
			for i, text := range s.bad {
				key := fmt.Sprintf("z%d", i)
				want = append(want, key)
				if err := p.SetNotes(t.Context(), s.object, map[string][]byte{key: []byte(text)}); err != nil {
					t.Fatal(err)
				}
			}
			all, unreadable := s.read(t, p)
			if diff := cmp.Diff(s.want, all); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, unreadable); diff != "" {
				t.Errorf("unreadable (-want +got):\n%s", diff)
			}
		})
	}
}

// TestOf asks for one intent among many.
func TestOf(t *testing.T) {
	p := newPool(t)
	j := journal.New("1", "ceph.com/rbd", "here").Intents
	in := journal.Intent{Image: "a", Namespace: "apps", Claim: "data", ClaimUID: "1", Volume: "pvc-1"}
	for image, want := range map[string]journal.Intent{"a": in, "b": {}} {
		if err := j.Write(t.Context(), p, in); err != nil {
			t.Fatal(err)
		}
		if got, err := j.Of(t.Context(), p, image); err != nil || got != want {
			t.Errorf("image %q: got %+v, error %v", image, got, err)
		}
	}
}

// TestClearMany clears more than one call clears.
func TestClearMany(t *testing.T) {
	p := newPool(t)
	j := journal.New("1", "ceph.com/rbd", "here").Intents
	notes, keys := map[string][]byte{}, []string{}
	for i := range 1234 {
		key := fmt.Sprint(i)
		notes[key], keys = []byte("{}"), append(keys, key)
	}
	if err := p.SetNotes(t.Context(), j.Object, notes); err != nil {
		t.Fatal(err)
	}
	if err := j.Clear(t.Context(), p, keys...); err != nil {
		t.Fatal(err)
	}
	if left, err := p.Notes(t.Context(), j.Object); err != nil || len(left) > 0 {
		t.Errorf("%d are left, error %v", len(left), err)
	}
}

// TestNoIntents: a cluster whose UID may not be read keeps no intents.
func TestNoIntents(t *testing.T) {
	p := newPool(t)
	j := journal.New("", "ceph.com/rbd", "here")
	in := journal.Intent{Image: "a", Namespace: "apps", Claim: "data", ClaimUID: "1", Volume: "pvc-1"}
	if err := j.Intents.Write(t.Context(), p, in); err != nil {
		t.Error(err)
	}
	if got, err := j.Intents.Of(t.Context(), p, "a"); err != nil || got != (journal.Intent{}) {
		t.Errorf("got %+v, error %v", got, err)
	}
	if all, unreadable, err := j.Intents.Read(t.Context(), p); err != nil || len(all)+len(unreadable) > 0 {
		t.Errorf("got %+v and %q, error %v", all, unreadable, err)
	}
	if err := j.Intents.Clear(t.Context(), p, "a"); err != nil {
		t.Error(err)
	}
	if got, want := j.Removals.Object, journal.New("unknown", "ceph.com/rbd", "here").Removals.Object; got != want {
		t.Errorf("removals are in %q, want %q", got, want)
	}
}
