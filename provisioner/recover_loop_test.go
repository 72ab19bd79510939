// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestRecoverWhileDown: Ceph, or the API, does not answer at first.
func TestRecoverWhileDown(t *testing.T) {
	for name, fail := range map[string]func(*testing.T, *fixture) (mend func()){
		"no monitor answers": func(_ *testing.T, f *fixture) func() {
			f.ceph.SetUnreachable(true)
			return func() { f.ceph.SetUnreachable(false) }
		},
		"no OSD answers": func(_ *testing.T, f *fixture) func() {
			f.ceph.Pause()
			return f.ceph.Resume
		},
		"the key is wrong": func(t *testing.T, f *fixture) func() {
			key := f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key
			return func() { f.putKey(t, "kube-system", "admin", key) }
		},
		"the caps are missing": func(t *testing.T, f *fixture) func() {
			f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", rbdtest.Caps{}).Key)
			return func() {
				f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key)
			}
		},
		"the class is not there": func(t *testing.T, f *fixture) func() {
			f.dropClass(t)
			return func() {
				if err := f.classes.Add(f.options.StorageClass); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				f.mustProvision(t)
				f.dropLive(t)
				f.restart(t, false)
				mend := fail(t, f)
				r := f.newRecovery()
				for range 2 {
					r.round(f.withLog(t.Context()))
				}
				checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
				mend()
				time.Sleep(time.Second) // of the bubble's clock: secrets are read anew
				if !f.round(t, r) {
					t.Error("it is not done")
				}
				f.checkNothing(t)
				f.checkIntents(t)
			})
		})
	}
}

// TestRecoverByVolume: the class is gone, another volume of the pool is not.
func TestRecoverByVolume(t *testing.T) {
	f := newFixture(t)
	pv := f.save(t, f.mustProvision(t))
	pv.Name, pv.Spec.RBD.RBDImage = "pvc-9", "kubernetes-dynamic-pvc-9"
	if err := f.journals.volumes.Add(pv); err != nil {
		t.Fatal(err)
	}
	if err := f.client.CoreV1().PersistentVolumes().Delete(t.Context(), "pvc-1234", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	f.dropClass(t)
	f.dropLive(t)
	f.restart(t, false)
	f.recoverAll(t)
	f.checkNothing(t)
	f.checkIntents(t)
}

// TestRecoverOwnSoon: recovery does not wait for its next round for what this process
// has left.
func TestRecoverOwnSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		ctx, cancel := context.WithCancel(f.withLog(t.Context()))
		defer synctest.Wait()
		defer cancel()
		go f.recoverLoop(ctx)
		synctest.Wait() // until its first round is over
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, Err: rbd.ErrTimeout, TakesEffect: true})
		if _, _, err := f.provision(t.Context(), t); !errors.Is(err, rbd.ErrTimeout) {
			t.Fatalf("got %v, want ErrTimeout", err)
		}
		f.dropLive(t)
		time.Sleep(2 * recoverAgain) // of the bubble's clock: this is what "soon" means
		synctest.Wait()
		f.checkNothing(t)
		f.checkIntents(t)
	})
}

// TestRecoverOwn: the library gave up a claim whose image this process may have
// made.
func TestRecoverOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		r := f.newRecovery()
		if !f.round(t, r) {
			t.Error("an empty journal is not done")
		}
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, Err: rbd.ErrTimeout, TakesEffect: true})
		if _, _, err := f.provision(t.Context(), t); !errors.Is(err, rbd.ErrTimeout) {
			t.Fatalf("got %v, want ErrTimeout", err)
		}
		f.dropLive(t)
		if !f.round(t, r) {
			t.Error("it is not done")
		}
		f.checkNothing(t)
		f.checkIntents(t)
		if connects := f.connector.connects.Load(); !f.round(t, r) || f.connector.connects.Load() != connects {
			t.Error("a pool where nothing is left was looked at again")
		}
	})
}

// TestRecoverExcludesProvision: of recovery and a Provision for the same image one
// waits for the other.
func TestRecoverExcludesProvision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.mustProvision(t)
		f.dropLive(t)
		f.restart(t, false)
		release := f.hold(t, rbdtest.CallImage) // that of findImage
		made := make(chan *corev1.PersistentVolume, 1)
		go func() {
			pv, _, _ := f.Provision(f.withLog(t.Context()), f.options)
			made <- pv
		}()
		synctest.Wait()
		recovered := make(chan bool, 1)
		go func() { recovered <- f.newRecovery().round(f.withLog(t.Context())) }()
		synctest.Wait()
		release()
		checkSame(t, "the volume", f.wantVolume(), <-made)
		<-recovered
		f.checkMade(t)
		f.checkIntents(t, testImage)
	})
}

// TestKeepJournal runs the loops.
func TestKeepJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		f.note(t, testIntent())
		f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, testMarks())
		f.dropLive(t)
		ended := make(chan struct{})
		ctx, cancel := context.WithCancel(f.withLog(t.Context()))
		go func() { defer close(ended); f.Keep(ctx) }()
		synctest.Wait()
		f.checkNothing(t)
		f.checkIntents(t)

		f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
		pv := f.mustProvision(t)
		f.checkIntents(t, testImage)
		time.Sleep(time.Hour)
		f.checkIntents(t, testImage) // its volume is not saved
		// Ceph is down when it is.
		f.ceph.SetUnreachable(true)
		f.Seen(nil, pv)
		time.Sleep(10 * clearEvery)
		f.checkIntents(t, testImage)
		f.ceph.SetUnreachable(false)
		time.Sleep(clearRetry + clearEvery)
		f.checkIntents(t)
		f.checkMade(t)
		cancel()
		<-ended
	})
}

func TestRecoverDrained(t *testing.T) {
	f := newFixture(t)
	f.mustProvision(t)
	f.dropLive(t)
	f.restart(t, false)
	if err := f.guard.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.round(t, f.newRecovery()) {
		t.Error("it says that it is done")
	}
	f.checkMade(t)
	f.checkIntents(t, testImage)
}

func TestWhereabouts(t *testing.T) {
	f := newFixture(t)
	f.putClass(t, func(c *storagev1.StorageClass) { c.Parameters["monitors"] = "" })
	checkSame(t, "the locations of a class that is wrong", 0, len(f.newRecovery().whereabouts(t.Context())))
	f.putClass(t, func(c *storagev1.StorageClass) {
		c.Parameters["monitors"], c.Provisioner = "10.0.0.1:6789", "example.com/other"
	})
	checkSame(t, "the locations of another's class", 0, len(f.newRecovery().whereabouts(t.Context())))
}
