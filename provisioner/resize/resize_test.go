// SPDX-License-Identifier: Apache-2.0

package resize

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

const patience = 30 * time.Second

// run runs the Loop until the returned function is called, which returns when the
// Loop is drained.
func (f *fixture) run() (stop func()) {
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx)
	}()
	return func() {
		f.t.Helper()
		cancel()
		<-done
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		if err := f.guard.Drain(drain); err != nil {
			f.t.Error(err)
		}
	}
}

// eventually waits until condition is true of the claim and the volume.
func (f *fixture) eventually(condition func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) bool) {
	f.t.Helper()
	var claim *corev1.PersistentVolumeClaim
	var pv *corev1.PersistentVolume
	if err := wait.PollUntilContextTimeout(f.t.Context(), time.Millisecond, patience, true, func(ctx context.Context) (done bool, err error) {
		if claim, err = f.client.CoreV1().PersistentVolumeClaims("apps").Get(ctx, "data", metav1.GetOptions{}); err != nil {
			return false, err
		}
		if pv, err = f.client.CoreV1().PersistentVolumes().Get(ctx, "pvc-1234", metav1.GetOptions{}); err != nil {
			return false, err
		}
		return condition(claim, pv), nil
	}); err != nil {
		f.t.Fatalf("%v: the claim has %+v, the volume %v, the image %d", err, claim.Status, pv.Spec.Capacity, f.size())
	}
}

func asks(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
	claim.Spec.Resources.Requests = storage("2Gi")
}

// has reports whether a claim or volume has 2 GiB.
func has(capacity corev1.ResourceList) bool { return capacity.Storage().Value() == 2*gib }

func pending(claim *corev1.PersistentVolumeClaim) bool {
	for _, c := range claim.Status.Conditions {
		if c.Type == corev1.PersistentVolumeClaimFileSystemResizePending && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func TestRun(t *testing.T) {
	t.Run("a device", func(t *testing.T) {
		f := newFixture(t, asks)
		defer f.run()()
		f.eventually(func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) bool {
			return has(pv.Spec.Capacity) && has(claim.Status.Capacity) && len(claim.Status.Conditions) == 0
		})
		if f.size() != 2*gib {
			t.Errorf("the image has %d bytes", f.size())
		}
	})
	t.Run("a file system, which is not larger yet", func(t *testing.T) {
		f := newFixture(t, func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			asks(claim, pv)
			claim.Spec.VolumeMode, pv.Spec.VolumeMode = nil, nil
		})
		defer f.run()()
		f.eventually(func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) bool {
			return has(pv.Spec.Capacity) && pending(claim) && !has(claim.Status.Capacity)
		})
	})
	t.Run("a claim that asks for nothing more, and one that asks later", func(t *testing.T) {
		f := newFixture(t, nil)
		defer f.run()()
		if _, err := f.client.CoreV1().PersistentVolumeClaims("apps").Patch(t.Context(), "data", types.MergePatchType,
			[]byte(`{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		f.eventually(func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) bool {
			return has(claim.Status.Capacity)
		})
	})
}

// A failure is told, tried again, and forgotten when it is over.
func TestRunTriesAgain(t *testing.T) {
	f := newFixture(t, asks)
	f.ceph.SetFull(testPool, true)
	defer f.run()()
	f.eventually(func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) bool {
		for _, c := range claim.Status.Conditions {
			if c.Type == corev1.PersistentVolumeClaimControllerResizeError {
				return strings.Contains(c.Message, "pool is full or over its quota") && !has(pv.Spec.Capacity)
			}
		}
		return false
	})
	f.ceph.SetFull(testPool, false)
	f.eventually(func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) bool {
		return has(claim.Status.Capacity) && len(claim.Status.Conditions) == 0
	})
}

// A process that ends between the image and the volume: the next one finds the
// image large enough.
func TestRunAfterCrash(t *testing.T) {
	f := newFixture(t, asks)
	f.grow(2 * gib)
	f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallGrowImage, Before: func() { t.Error("it grew the image again") }})
	defer f.run()()
	f.eventually(func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) bool {
		return has(pv.Spec.Capacity) && has(claim.Status.Capacity)
	})
}

// A replica that was halted while it looked at the image, and leads no more, does
// not grow it; one that was halted while it grew it does not tell of it.
func TestRunStopsWithTheLease(t *testing.T) {
	for _, test := range []struct {
		name string
		in   rbdtest.Call
		size uint64
	}{
		{"before the image", rbdtest.CallImage, gib},
		{"before the volume", rbdtest.CallGrowImage, 2 * gib},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, asks)
			var lost atomic.Bool
			f.leading = func() bool { return !lost.Load() }
			halted := make(chan struct{})
			f.ceph.Fake(rbdtest.FakeFault{Call: test.in, Before: func() { lost.Store(true); close(halted) }})
			stop := f.run()
			<-halted
			stop()
			if f.size() != test.size {
				t.Errorf("the image has %d bytes, want %d", f.size(), test.size)
			}
			f.eventually(func(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) bool {
				return !has(pv.Spec.Capacity) && !has(claim.Status.Capacity)
			})
			f.checkClosed()
		})
	}
}

// Drain waits for what runs, and nothing begins after it.
func TestDrain(t *testing.T) {
	f := newFixture(t, asks)
	entered, leave := make(chan struct{}), make(chan struct{})
	f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallGrowImage, Before: func() { close(entered); <-leave }})
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { defer close(ran); f.Run(ctx) }()
	<-entered
	cancel()
	<-ran
	over, end := context.WithCancel(t.Context())
	end()
	if err := f.guard.Drain(over); !errors.Is(err, context.Canceled) {
		t.Errorf("while a volume grows: %v", err)
	}
	close(leave)
	if err := f.guard.Drain(t.Context()); err != nil {
		t.Error(err)
	}
	if f.size() != 2*gib {
		t.Errorf("the image has %d bytes: what had begun was not finished", f.size())
	}
	if _, _, err := f.resizer().Resize(f.pv, resource.MustParse("3Gi")); !errors.Is(err, lease.ErrStopping) {
		t.Errorf("after it: %v", err)
	}
	client := fencedClient{f.client, f.guard}.CoreV1()
	if _, err := client.PersistentVolumes().Patch(t.Context(), "pvc-1234", types.MergePatchType, []byte(`{}`), metav1.PatchOptions{}); !errors.Is(err, lease.ErrStopping) {
		t.Errorf("a volume was patched: %v", err)
	}
	if _, err := client.PersistentVolumeClaims("apps").Patch(t.Context(), "data", types.MergePatchType, []byte(`{}`), metav1.PatchOptions{}); !errors.Is(err, lease.ErrStopping) {
		t.Errorf("a claim was patched: %v", err)
	}
	f.checkClosed()
}

// external-resizer makes no requests but these.
func TestRequests(t *testing.T) {
	f := newFixture(t, asks)
	stop := f.run()
	f.eventually(func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) bool {
		return has(claim.Status.Capacity)
	})
	stop()
	for _, action := range f.client.Actions() {
		what := action.GetVerb() + " " + action.GetResource().Resource
		if sub := action.GetSubresource(); sub != "" {
			what += "/" + sub
		}
		switch what {
		case "patch persistentvolumes", "patch persistentvolumeclaims/status", "create events", "patch events":
		case "get secrets", "list persistentvolumes", "watch persistentvolumes", "list persistentvolumeclaims", "watch persistentvolumeclaims",
			"list storageclasses", "watch storageclasses":
		case "get persistentvolumes", "get persistentvolumeclaims": // by this test
		default:
			t.Errorf("it asks to %s", what)
		}
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "Keeper, Volumes, Client, Factory, Resized and Sized are required") {
		t.Errorf("got %v", err)
	}
	c := newFixture(t, nil).config
	c.Workers = 0
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "Workers") {
		t.Errorf("got %v", err)
	}
}
