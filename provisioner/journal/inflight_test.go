// SPDX-License-Identifier: Apache-2.0

package journal_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

var poolA, poolB = volume.PoolID{FSID: "1", Pool: "a"}, volume.PoolID{FSID: "1", Pool: "b"}

// TestInFlight follows intents from their beginning to their end.
func TestInFlight(t *testing.T) {
	j := journal.New("1", "ceph.com/rbd", "here")
	var ended []volume.PoolID
	j.InFlight.OnEnd(func(pool volume.PoolID) { ended = append(ended, pool) })
	one, two := journal.Intent{Image: "image-1", Volume: "pvc-1"}, journal.Intent{Image: "image-2", Volume: "pvc-2"}
	failed := errors.New("failed")
	open := newPool(t)
	settle := func(pool volume.PoolID, images ...string) {
		t.Helper()
		if err := j.Settle(t.Context(), open, pool, images...); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, inA, inB, saved bool, wantEnded ...volume.PoolID) {
		t.Helper()
		for pool, want := range map[volume.PoolID]bool{poolA: inA || saved, poolB: inB} {
			if got := j.InFlight.Has(pool, one); got != want {
				t.Errorf("%s: in flight in pool %s: %v, want %v", what, pool.Pool, got, want)
			}
		}
		if got := j.InFlight.SavedIn(poolA); (len(got) == 1) != saved || len(j.InFlight.SavedIn(poolB)) > 0 {
			t.Errorf("%s: saved are %q, want it: %v", what, got, saved)
		}
		if j.InFlight.Has(poolA, two) {
			t.Errorf("%s: something else is known", what)
		}
		if diff := cmp.Diff(wantEnded, ended); diff != "" {
			t.Errorf("%s: ended (-want +got):\n%s", what, diff)
		}
		ended = nil
	}
	j.InFlight.Saved("pvc-1", poolA.Image("image-1"))
	check("a volume that others made", false, false, false)
	end := j.Begin(poolA, one)
	check("begun", true, false, false)
	end(failed)
	check("failed", false, false, false, poolA)
	j.Begin(poolA, one)(nil)
	check("made", true, false, false)
	j.Begin(poolB, one)(failed)
	check("tried in another pool", false, false, false, poolA, poolB)
	j.Begin(poolA, one)(nil)
	j.InFlight.Saved("pvc-1", poolB.Image("image-1"))
	j.InFlight.Saved("pvc-1", poolA.Image("image-2"))
	j.InFlight.Saved("pvc-2", poolA.Image("image-1"))
	check("others were saved", true, false, false)
	j.InFlight.Saved("pvc-1", poolA.Image("image-1"))
	check("saved", false, false, true, poolA)
	j.InFlight.Saved("pvc-1", poolA.Image("image-1"))
	check("seen once more", false, false, true)
	settle(poolB, "image-1")
	check("cleared elsewhere", false, false, true)
	settle(poolA, "image-1", "image-2")
	check("cleared", false, false, false)
	j.Begin(poolA, one)(nil)
	j.InFlight.Saved("pvc-1", poolA.Image("image-1"))
	j.Begin(poolA, one)(nil)
	check("made once more", true, false, false, poolA)
}

// TestNothingInFlightWithoutIntents: where no intents are kept, nothing is in flight.
func TestNothingInFlightWithoutIntents(t *testing.T) {
	j := journal.New("", "ceph.com/rbd", "here")
	j.InFlight.OnEnd(func(volume.PoolID) { t.Error("something ended") })
	in := journal.Intent{Image: "image-1", Volume: "pvc-1"}
	j.Begin(poolA, in)(nil)
	j.InFlight.Saved("pvc-1", poolA.Image("image-1"))
	if j.InFlight.Has(poolA, in) || len(j.InFlight.SavedIn(poolA)) > 0 {
		t.Error("it is remembered")
	}
}
