// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// hold makes the next such call wait until release is called, or the test ends.
func (f *fixture) hold(t *testing.T, call rbdtest.Call) (release func()) {
	t.Helper()
	gate := make(chan struct{})
	f.ceph.Fake(rbdtest.FakeFault{Call: call, Before: func() { <-gate }})
	release = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	return release
}

// checkStopping checks that no operation begins any more.
func (f *fixture) checkStopping(t *testing.T, pv *corev1.PersistentVolume) {
	t.Helper()
	before := f.connector.connects.Load()
	begin := time.Now()
	_, _, err := f.Provision(f.withLog(t.Context()), f.options)
	checkIgnored(t, err)
	checkIgnored(t, f.Delete(t.Context(), pv))
	checkSame(t, "the number of connections", before, f.connector.connects.Load())
	checkSame(t, "the time that refusing took", 0, time.Since(begin))
}

func TestDrainIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		pv := f.mustProvision(t)
		for range 2 {
			if err := f.guard.Drain(t.Context()); err != nil {
				t.Error(err)
			}
		}
		f.checkStopping(t, pv)
		f.checkMade(t)
	})
}

func TestDrainWaits(t *testing.T) {
	for _, test := range []struct {
		name string
		call rbdtest.Call
		run  func(context.Context, *fixture, *corev1.PersistentVolume) error
	}{
		{"for Provision", rbdtest.CallSetMetadata, func(ctx context.Context, f *fixture, _ *corev1.PersistentVolume) error {
			_, _, err := f.Provision(f.withLog(ctx), f.options)
			return err
		}},
		{"for Delete", rbdtest.CallTrashImage, func(ctx context.Context, f *fixture, pv *corev1.PersistentVolume) error {
			return f.Delete(f.withLog(ctx), pv)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t)
				pv := f.wantVolume()
				f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
				release := f.hold(t, test.call)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- test.run(ctx, f, pv) }()
				synctest.Wait()

				// The library's context ends first, then the drain begins.
				cancel()
				drained := make(chan error, 1)
				go func() { drained <- f.guard.Drain(t.Context()) }()
				synctest.Wait()
				select {
				case err := <-drained:
					t.Fatalf("Drain did not wait, but returned %v", err)
				case err := <-ended:
					t.Fatalf("the operation did not go on, but returned %v", err)
				default:
				}
				f.checkStopping(t, pv)

				release()
				if err := <-ended; err != nil {
					t.Errorf("what had begun was not finished: %v", err)
				}
				if err := <-drained; err != nil {
					t.Errorf("drain: %v", err)
				}
				f.checkStopping(t, pv)
			})
		})
	}
}

func TestDrainGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t)
		release := f.hold(t, rbdtest.CallCreateImage)
		ended := make(chan error, 1)
		go func() {
			_, _, err := f.Provision(f.withLog(t.Context()), f.options)
			ended <- err
		}()
		synctest.Wait()

		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		begin := time.Now()
		if err := f.guard.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
		checkSame(t, "the time that Drain waited", 5*time.Second, time.Since(begin))
		f.checkStopping(t, f.wantVolume())

		release()
		if err := <-ended; err != nil {
			t.Errorf("what had begun was not finished: %v", err)
		}
		f.checkMade(t)
		// The next leader finds what this one did.
		f.restart(t)
		checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
	})
}
