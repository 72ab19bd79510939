// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestIntentOfSavedVolume: the intent stays until a moment after the cache shows the
// volume. Clearing it costs no request.
func TestIntentOfSavedVolume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.begin("pools", f.pools.Run)
		f.pass(t, time.Second)
		pv := f.save(t, f.mustProvision(t))
		f.dropLive(t) // as far as this process knows
		f.pass(t, time.Hour)
		f.checkIntents(t, testImage)
		f.client.ClearActions()
		f.Seen(nil, pv)
		f.pass(t, 10*time.Second)
		f.checkIntents(t)
		f.checkMade(t)
		for _, action := range f.client.Actions() {
			if action.GetResource().Resource != "secrets" {
				t.Errorf("a request was made: %s %s", action.GetVerb(), action.GetResource().Resource)
			}
		}
	})
}

// TestFailedAttemptIsLookedAtSoon: an attempt failed and its claim is gone. What it left
// is removed, although nothing was left in the pool before.
func TestFailedAttemptIsLookedAtSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.begin("pools", f.pools.Run)
		f.pass(t, time.Minute)
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSetMetadata, Err: errors.New("unknown")})
		if _, _, err := f.provision(t.Context(), t); err == nil {
			t.Fatal("it made a volume")
		}
		f.dropLive(t)
		f.pass(t, 10*time.Second)
		f.checkNothing(t)
		f.checkIntents(t)
	})
}
