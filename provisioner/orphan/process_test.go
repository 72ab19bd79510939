// SPDX-License-Identifier: Apache-2.0

package orphan_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/orphan"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestNew leaves out what New needs.
func TestNew(t *testing.T) {
	if _, err := orphan.New(orphan.Config{Identity: testIdentity}); err == nil {
		t.Error("it needs nothing")
	}
}

// TestOwn: the library gave up a claim, but this process may have made its image.
func TestOwn(t *testing.T) {
	w := newWorld(t)
	if err := w.visit(t); err != nil {
		t.Errorf("an empty journal: %v", err)
	}
	w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, Err: rbd.ErrTimeout, TakesEffect: true})
	if err := w.make(t, w.wanted()); !errors.Is(err, rbd.ErrTimeout) {
		t.Fatalf("got %v, want ErrTimeout", err)
	}
	w.dropClaim(t)
	if err := w.visit(t); err != nil {
		t.Error(err)
	}
	w.checkNothing(t)
	w.checkIntents(t)
	checkSame(t, "the outcomes", []orphan.Outcome{orphan.OutcomeRemoved}, w.counted())
}

// TestExcludesMaking: a visit does not look at an image while this process makes it.
func TestExcludesMaking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.mustMake(t)
		w.dropClaim(t)
		w.restart(t)
		held := make(chan struct{})
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Before: func() { <-held }}) // that of adopting it
		var ended sync.WaitGroup
		ended.Go(func() {
			if err := w.make(t, w.wanted()); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		ended.Go(func() {
			pool := w.open(t)
			defer pool.Close()
			if err := w.Visit(w.withLog(t.Context()), pool); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		close(held)
		ended.Wait()
		w.checkMade(t)
		w.checkIntents(t, testImage)
	})
}

// TestExcludedFromMaking: an image is not made while a visit decides about it.
func TestExcludedFromMaking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.mustMake(t)
		w.dropClaim(t)
		w.restart(t)
		held := make(chan struct{})
		w.client.PrependReactor("list", "persistentvolumes", func(clienttesting.Action) (bool, runtime.Object, error) {
			<-held
			return false, nil, nil
		})
		var ended sync.WaitGroup
		ended.Go(func() {
			pool := w.open(t)
			defer pool.Close()
			if err := w.Visit(w.withLog(t.Context()), pool); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		ended.Go(func() {
			if err := w.make(t, w.wanted()); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		close(held)
		ended.Wait()
		checkSame(t, "the outcomes", []orphan.Outcome{orphan.OutcomeRemoved}, w.counted())
		w.checkMade(t)
		w.checkIntents(t, testImage)
	})
}

// TestMayNotBegin visits by a process that stops, or does not lead any more.
func TestMayNotBegin(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *world){
		"it stops": func(t *testing.T, w *world) {
			if err := w.guard.Drain(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		"it does not lead": func(_ *testing.T, w *world) { w.leaseLost.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mustMake(t)
			w.dropClaim(t)
			w.restart(t)
			end(t, w)
			if err := w.visit(t); !errors.Is(err, pools.ErrLeft) {
				t.Errorf("got %v, want %v", err, pools.ErrLeft)
			}
			w.checkMade(t)
			w.checkIntents(t, testImage)
			checkSame(t, "the outcomes", nil, w.counted())
		})
	}
}

// TestStop: when the process stops, the image at hand is removed, and no further one.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for _, name := range []string{"a", "b"} {
			in := testIntent()
			in.Image, in.Volume = name, "pvc-"+name
			w.note(t, in)
			w.seed(t, name, gib, nil)
		}
		w.dropClaim(t)
		held := make(chan struct{})
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, Before: func() { <-held }})
		visited, drained := make(chan error), make(chan error)
		go func() {
			pool := w.open(t)
			defer pool.Close()
			visited <- w.Visit(w.withLog(t.Context()), pool)
		}()
		synctest.Wait()
		go func() { drained <- w.guard.Drain(t.Context()) }()
		synctest.Wait()
		close(held)
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if err := <-visited; !errors.Is(err, pools.ErrLeft) {
			t.Errorf("got %v, want %v", err, pools.ErrLeft)
		}
		checkSame(t, "the images", []string{"b"}, w.ceph.Images(testPool))
		w.checkIntents(t, "b")
	})
}

// TestAPIDown: nothing is removed while the API server does not say whether it is wanted.
func TestAPIDown(t *testing.T) {
	for name, call := range map[string][2]string{"claims": {"get", "persistentvolumeclaims"}, "volumes": {"list", "persistentvolumes"}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.mustMake(t)
			w.dropClaim(t)
			w.restart(t)
			down := true
			w.client.PrependReactor(call[0], call[1], func(clienttesting.Action) (bool, runtime.Object, error) {
				return down, nil, errors.New("down")
			})
			if err := w.visit(t); !errors.Is(err, pools.ErrLeft) {
				t.Errorf("got %v, want %v", err, pools.ErrLeft)
			}
			w.checkMade(t)
			w.checkIntents(t, testImage)
			checkSame(t, "the outcomes", nil, w.counted())
			down = false
			w.visitAll(t)
			w.checkNothing(t)
			w.checkIntents(t)
		})
	}
}

// TestFaults: a visit returns what somebody has to mend, and does not stop at it: the other
// images are removed.
func TestFaults(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault rbdtest.FakeFault
		want  error
	}{
		{"the journal can't be read", rbdtest.FakeFault{Call: rbdtest.CallNotes, Err: rbd.ErrTimeout}, rbd.ErrTimeout},
		{"an image may not be removed", rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, Image: "a", Err: rbd.ErrPermissionDenied}, rbd.ErrPermissionDenied},
		{"an image can't be removed", rbdtest.FakeFault{Call: rbdtest.CallRemoveImage, Image: "a", Err: rbd.ErrTimeout}, pools.ErrLeft},
		{"an image goes while it is looked at", rbdtest.FakeFault{Call: rbdtest.CallWritten, Image: "a", Err: rbd.ErrImageNotFound}, pools.ErrLeft},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			for _, name := range []string{"a", "b"} {
				in := testIntent()
				in.Image, in.Volume = name, "pvc-"+name
				w.note(t, in)
				w.seed(t, name, gib, nil)
			}
			w.dropClaim(t)
			w.ceph.Fake(test.fault)
			if err := w.visit(t); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			want := []string{"a"}
			if test.fault.Call == rbdtest.CallNotes {
				want = []string{"a", "b"}
			}
			checkSame(t, "the images", want, w.ceph.Images(testPool))
			w.checkIntents(t, want...)
			w.visitAll(t)
			w.checkNothing(t)
			w.checkIntents(t)
		})
	}
}

// TestUnreadable: what another version wrote is left alone, and logged once.
func TestUnreadable(t *testing.T) {
	w := newWorld(t)
	w.mustMake(t)
	w.seed(t, "future", gib, nil)
	pool := w.open(t)
	err := pool.SetNotes(t.Context(), w.journal.Intents.Object, map[string][]byte{"future": []byte(`{"version":2}`)})
	pool.Close()
	if err != nil {
		t.Fatal(err)
	}
	w.dropClaim(t)
	w.restart(t)
	for range 3 {
		if err := w.visit(t); !errors.Is(err, pools.ErrLeft) {
			t.Errorf("got %v, want %v", err, pools.ErrLeft)
		}
	}
	checkSame(t, "the images", []string{"future"}, w.ceph.Images(testPool))
	w.checkIntents(t, "future")
	log := strings.Join(w.logged(), "\n")
	if n := strings.Count(log, "Intents of another version are left alone"); n != 1 {
		t.Errorf("it was said %d times:\n%s", n, log)
	}
}

// TestSlow: where each image takes long, a visit ends after a while, and the next one goes on.
func TestSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const images = 10
		for i := range images {
			in := journal.Intent{
				Image: string(rune('a' + i)), Namespace: "apps", Claim: "data", ClaimUID: "1", Volume: "pvc", SizeBytes: gib,
			}
			w.note(t, in)
			w.seed(t, in.Image, gib, nil)
		}
		w.dropClaim(t)
		w.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Before: func() { time.Sleep(25 * time.Second) }, Times: images})
		begin := time.Now()
		if err := w.visit(t); !errors.Is(err, pools.ErrLeft) {
			t.Errorf("got %v, want %v", err, pools.ErrLeft)
		}
		if took := time.Since(begin); took < 2*time.Minute || took > 3*time.Minute {
			t.Errorf("it took %s", took)
		}
		w.visitAll(t)
		w.checkNothing(t)
		w.checkIntents(t)
	})
}
