// SPDX-License-Identifier: Apache-2.0

package pools_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

// readNotes is a visit that needs permissions, as any useful one does.
func readNotes(ctx context.Context, pool *access.Pool, _ int) error {
	_, err := pool.Notes(ctx, "notes")
	return err
}

// checkDone checks that a visitor was called, and is not called again.
func (w *world) checkDone(t *testing.T, v *FakeVisitor) {
	t.Helper()
	v.mu.Lock()
	visits := len(v.visits)
	v.visits, v.times = nil, nil
	v.mu.Unlock()
	if visits == 0 {
		t.Error("the pool was not visited")
	}
	pass(time.Hour)
	v.check(t)
}

// TestRetries checks when a pool is visited again.
func TestRetries(t *testing.T) {
	seconds := func(list ...int) (times []time.Duration) {
		for _, s := range list {
			times = append(times, time.Duration(s)*time.Second)
		}
		return times
	}
	failed := errors.New("failed")
	for _, test := range []struct {
		name    string
		results []error // of each visit; the last one is nil
		want    []time.Duration
		faults  int
	}{
		{"nothing is left", []error{nil}, seconds(0), 0},
		{"something is left", []error{pools.ErrLeft, pools.ErrLeft, pools.ErrLeft, nil}, seconds(0, 1, 3, 7), 0},
		{"it fails, which is said once", []error{failed, failed, failed, nil}, seconds(0, 1, 3, 7), 1},
		{"it comes later", []error{work.Later(time.Minute), work.Later(time.Hour), nil}, seconds(0, 60, 3660), 0},
		{"it fails anew", []error{failed, pools.ErrLeft, failed, nil}, seconds(0, 1, 3, 7), 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVisitor(func(_ context.Context, _ *access.Pool, n int) error { return test.results[n] })
				once := newVisitor(nil)
				w := newWorld(t, v, once)
				w.putClass(t, "fast", asItIs)
				w.run(t)
				pass(24 * time.Hour)
				v.checkTimes(t, test.want...)
				once.checkTimes(t, 0) // the other visitor's retries do not concern it
				w.checkFaults(t, test.faults)
			})
		})
	}
}

// TestAgain: a pool is visited soon after Again, however often that is called.
func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(nil)
		w := newWorld(t, v)
		w.putClass(t, "fast", asItIs)
		w.run(t)
		pass(time.Minute)
		v.check(t, w.pool())
		for range 90 { // in nine seconds
			w.Again(w.pool())
			pass(100 * time.Millisecond)
		}
		v.check(t, w.pool())
		pass(10 * time.Second)
		v.check(t, w.pool())
		w.Again(volume.PoolID{FSID: w.other.FSID(), Pool: testPool}) // nobody names it
		pass(time.Hour)
		v.check(t)
		w.checkFaults(t, 0)
	})
}

// TestAgainBeforeRun calls Again before the first look: the pool is visited, and once.
func TestAgainBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(nil)
		w := newWorld(t, v)
		w.putVolume(t, "pvc-1", func(*corev1.PersistentVolume, *volume.Record) {})
		w.Again(w.pool())
		w.run(t)
		pass(time.Hour)
		v.check(t, w.pool())
	})
}

// TestAgainMeanwhile: calls of Again during a visit have the pool visited once more.
func TestAgainMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(func(context.Context, *access.Pool, int) error {
			time.Sleep(time.Minute) // of the bubble's clock
			return nil
		})
		w := newWorld(t, v)
		w.putClass(t, "fast", asItIs)
		w.run(t)
		pass(30 * time.Second)
		w.Again(w.pool())
		w.Again(w.pool())
		pass(time.Hour)
		v.checkTimes(t, 0, 65*time.Second)
	})
}

// TestAgainDuringAVisit: where something has to wait, Again during a visit does not have
// the pool visited more often.
func TestAgainDuringAVisit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		v := newVisitor(func(context.Context, *access.Pool, int) error {
			time.Sleep(time.Second) // of the bubble's clock
			w.Again(w.pool())
			return pools.ErrLeft
		})
		w = newWorld(t, v)
		w.putClass(t, "fast", asItIs)
		w.run(t)
		pass(time.Hour)
		v.mu.Lock()
		defer v.mu.Unlock()
		if n := len(v.times); n > 25 {
			t.Errorf("it was visited %d times in an hour", n)
		}
	})
}

// TestAgainDoesNotHasten: where something has to wait, Again does not have the pool visited
// more often.
func TestAgainDoesNotHasten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(func(context.Context, *access.Pool, int) error { return pools.ErrLeft })
		w := newWorld(t, v)
		w.putClass(t, "fast", asItIs)
		w.run(t)
		pass(time.Hour)
		v.mu.Lock()
		before := len(v.times)
		v.mu.Unlock()
		for range 3600 {
			w.Again(w.pool())
			pass(time.Second)
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		if more := len(v.times) - before; more > 12 {
			t.Errorf("it was visited %d times in an hour", more)
		}
	})
}

// TestWhileDown: at first Ceph does not answer, or refuses us.
func TestWhileDown(t *testing.T) {
	for name, fail := range map[string]func(*testing.T, *world) (mend func()){
		"no monitor answers": func(_ *testing.T, w *world) func() {
			w.ceph.SetUnreachable(true)
			return func() { w.ceph.SetUnreachable(false) }
		},
		"no OSD answers": func(_ *testing.T, w *world) func() {
			w.ceph.Pause()
			return w.ceph.Resume
		},
		"the key is wrong": func(t *testing.T, w *world) func() {
			key := w.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key
			return func() { w.putKey(t, "admin", key) }
		},
		"the caps are missing": func(t *testing.T, w *world) func() {
			w.putKey(t, "admin", w.ceph.AddUser("admin", rbdtest.Caps{}).Key)
			return func() { w.putKey(t, "admin", w.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key) }
		},
		"the pool is not there": func(_ *testing.T, w *world) func() {
			w.ceph.RemovePool(testPool)
			return func() { w.ceph.AddPool(testPool) }
		},
		"the class is not there": func(t *testing.T, w *world) func() {
			if err := w.classes.Delete(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}}); err != nil {
				t.Fatal(err)
			}
			return func() { w.putClass(t, "fast", asItIs) }
		},
		"the class is wrong": func(t *testing.T, w *world) func() {
			w.putClass(t, "fast", with("adminId", "nobody"))
			return func() { w.putClass(t, "fast", asItIs) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newVisitor(readNotes)
				w := newWorld(t, v)
				w.putClass(t, "fast", asItIs)
				mend := fail(t, w)
				w.run(t)
				pass(time.Hour)
				want := 1
				if name == "the class is not there" {
					want = 0
				}
				w.checkFaults(t, want)
				mend()
				v.mu.Lock()
				v.visits = nil
				v.mu.Unlock()
				pass(6 * time.Minute)
				w.checkDone(t, v)
				w.checkFaults(t, want)
			})
		})
	}
}

// TestSlowPools: slow pools do not hold up another one.
func TestSlowPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := []string{"a", "b", "c"}
		v := newVisitor(func(_ context.Context, pool *access.Pool, _ int) error {
			if pool.ID.Pool != testPool {
				time.Sleep(24 * time.Hour) // of the bubble's clock
			}
			return nil
		})
		w := newWorld(t, v)
		for _, name := range slow {
			w.ceph.AddPool(name)
			w.putClass(t, name, with("pool", name))
		}
		w.run(t)
		pass(time.Minute)
		w.putClass(t, "fast", asItIs)
		v.mu.Lock()
		v.visits = nil
		v.mu.Unlock()
		pass(6 * time.Minute)
		v.check(t, w.pool())
	})
}

// TestRunStops ends the context during a visit: the visit is told, and no other begins.
func TestRunStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVisitor(func(ctx context.Context, _ *access.Pool, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		})
		w := newWorld(t, v)
		w.putClass(t, "fast", asItIs)
		ctx, cancel := context.WithCancel(w.withLog(t.Context()))
		ended := make(chan struct{})
		go func() { defer close(ended); w.Run(ctx) }()
		pass(time.Minute)
		cancel()
		<-ended
		v.check(t, w.pool())
		w.checkFaults(t, 0)
	})
}
