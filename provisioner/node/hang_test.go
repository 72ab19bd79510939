// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// FakeResolver knows no name.
type FakeResolver struct{}

// LookupNetIP implements monitors.Resolver.
func (FakeResolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// A call that does not end is answered in time, says what it waits for, and keeps others
// from the volume until it ends; other volumes go on.
func TestHungCall(t *testing.T) {
	for name, test := range map[string]struct {
		calls func(*world) []func(context.Context) error // the last one hangs
		step  string
	}{
		"map":     {func(w *world) []func(context.Context) error { return []func(context.Context) error{w.stage} }, "the mapping of the image"},
		"bind":    {func(w *world) []func(context.Context) error { return []func(context.Context) error{w.stage, w.publish} }, "the bind mount"},
		"unmount": {func(w *world) []func(context.Context) error { return []func(context.Context) error{w.stage, w.unstage} }, "the unmounting of"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				calls := test.calls(w)
				last := len(calls) - 1
				for _, call := range calls[:last] {
					w.must(call(t.Context()))
				}
				hang := make(chan struct{})
				w.node.setHang(hang)
				began := time.Now()
				// As kubelet asks.
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				w.refused(calls[last](ctx), codes.DeadlineExceeded, "still waiting for "+test.step, w.handle, "ceph -s")
				if took := time.Since(began); took != defaultDeadline {
					t.Errorf("it took %v", took)
				}
				for _, call := range []func(context.Context) error{w.stage, w.publish, w.unpublish, w.unstage} {
					w.refused(call(t.Context()), codes.Aborted, "has not ended, still waiting for "+test.step, w.handle, "will retry")
				}
				if len(w.server.operations.running) != 1 {
					t.Errorf("%d operations run", len(w.server.operations.running))
				}
				w.node.setHang(nil)
				close(hang)
				synctest.Wait()
				w.must(w.unpublish(t.Context()))
				w.must(w.unstage(t.Context()))
				w.clean()
			})
		})
	}
}

// The caller's deadline holds where it is earlier, with some time for the answer.
func TestCallersDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hang := make(chan struct{})
		w.node.setHang(hang)
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		w.refused(w.stage(ctx), codes.DeadlineExceeded, "the mapping of the image")
		if took := time.Since(began); took != 8*time.Second {
			t.Errorf("it took %v", took)
		}
		close(hang)
		synctest.Wait()
	})
}

// The same volume twice at once, and another one meanwhile.
func TestTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		hang := make(chan struct{})
		w.node.setHang(hang)
		first := make(chan error)
		go func() { first <- w.stage(t.Context()) }()
		synctest.Wait()
		w.refused(w.stage(t.Context()), codes.Aborted, "NodeStageVolume")
		w.node.setHang(nil)

		other := *w
		w.makeImage("other")
		other.attributes = map[string]string{"pool": testPool, "image": "other", "user": testUser, "monitors": w.attributes["monitors"]}
		other.handle = strings.ReplaceAll(w.handle, testImage, "other")
		other.staging += "2"
		w.node.images[other.handle] = &FakeImage{size: gib}
		other.must(other.stage(t.Context()))
		other.must(other.unstage(t.Context()))

		close(hang)
		w.must(<-first)
		w.must(w.stage(t.Context()))
		if w.image.made != 1 {
			t.Errorf("mkfs ran %d times", w.image.made)
		}
	})
}

// One volume's bug is not the others'.
func TestPanic(t *testing.T) {
	w := newWorld(t)
	w.server.host.clearUnfinished = func(string) error { panic("index out of range") }
	w.refused(w.stage(t.Context()), codes.Internal, "a bug in the node plugin")
	w.server.host.clearUnfinished = func(string) error { return nil }
	w.must(w.stage(t.Context()))
}

func (w *world) stats(ctx context.Context, path string) (*csi.NodeGetVolumeStatsResponse, error) {
	return w.server.NodeGetVolumeStats(ctx, &csi.NodeGetVolumeStatsRequest{VolumeId: w.handle, VolumePath: path})
}

// condition returns what kubelet up to 1.36, and what newer ones read of a volume's state.
func (w *world) condition(ctx context.Context) (old, reason string) {
	w.Helper()
	r, err := w.stats(ctx, w.target)
	w.must(err)
	h, err := w.server.NodeGetVolumeHealth(ctx, &csi.NodeGetVolumeHealthRequest{VolumeId: w.handle, VolumePublishPath: w.target, StagingTargetPath: w.staging})
	w.must(err)
	if h.GetVolumeHealth().GetVolumeId() != w.handle {
		w.Errorf("got the health of %q", h.GetVolumeHealth().GetVolumeId())
	}
	for _, s := range h.GetVolumeHealth().GetHealthStatuses() {
		if !strings.Contains(string(r.ProtoReflect().GetUnknown()), s.GetMessage()) {
			w.Errorf("the stats do not say %q", s.GetMessage())
		}
		reason += s.GetReason()
	}
	return string(r.ProtoReflect().GetUnknown()), reason
}

func TestStats(t *testing.T) {
	w := newWorld(t)
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	r, err := w.stats(t.Context(), w.target)
	w.must(err)
	want := map[csi.VolumeUsage_Unit][3]int64{
		csi.VolumeUsage_BYTES: {1000 * 4096, 400 * 4096, 500 * 4096}, csi.VolumeUsage_INODES: {100, 10, 90},
	}
	for _, u := range r.GetUsage() {
		if got := [3]int64{u.GetTotal(), u.GetUsed(), u.GetAvailable()}; got != want[u.GetUnit()] {
			t.Errorf("%s: got %v, want %v", u.GetUnit(), got, want[u.GetUnit()])
		}
		delete(want, u.GetUnit())
	}
	if len(want) > 0 {
		t.Errorf("no %v", want)
	}
	if old, reason := w.condition(t.Context()); reason != "" || !strings.Contains(old, "healthy") {
		t.Errorf("got %q, %q", old, reason)
	}
	_, err = w.stats(t.Context(), "some/path")
	w.refused(err, codes.NotFound, "some/path")
	_, err = w.server.NodeGetVolumeHealth(t.Context(), &csi.NodeGetVolumeHealthRequest{VolumeId: "a/b/c"})
	w.refused(err, codes.NotFound)

	w = newWorld(t)
	w.capability = block(writer)
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	r, err = w.stats(t.Context(), w.target)
	w.must(err)
	if got := r.GetUsage(); len(got) != 1 || got[0].GetTotal() != gib || got[0].GetUnit() != csi.VolumeUsage_BYTES {
		t.Errorf("block: got %v", got)
	}
}

func TestCondition(t *testing.T) {
	for name, test := range map[string]struct {
		harm    func(*world)
		reason  string
		hasSize bool
	}{
		"the device is gone": {harm: func(w *world) { clear(w.node.devices) }, reason: "NoDevice"},
		"reads fail":         {harm: func(w *world) { w.server.host.readDevice = func(string, int) ([]byte, error) { return nil, unix.EIO } }, reason: "ReadError"},
		"the file system fails": {harm: func(w *world) {
			w.server.host.statfs = func(string) (unix.Statfs_t, error) { return unix.Statfs_t{}, unix.EIO }
		}, reason: "FileSystemError"},
		"read-only after an error": {harm: func(w *world) { w.image.superReadOnly = true }, reason: "ReadOnlyFileSystem", hasSize: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.must(w.stage(t.Context()))
			w.must(w.publish(t.Context()))
			test.harm(w)
			if old, reason := w.condition(t.Context()); reason != test.reason || !strings.Contains(old, "node-1") || !strings.Contains(old, "node") {
				t.Errorf("got %q, %q", old, reason)
			}
			if r, err := w.stats(t.Context(), w.target); err != nil || len(r.GetUsage()) > 0 != test.hasSize {
				t.Errorf("got %v, %v", r, err)
			}
			w.must(w.unpublish(t.Context()))
			w.must(w.unstage(t.Context()))
			w.clean()
		})
	}
	// A volume to read is read-only by right.
	w := newWorld(t)
	w.capability, w.image.fsType = fileSystem(ext4, readers), ext4
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	if old, reason := w.condition(t.Context()); reason != "" {
		t.Errorf("got %q, %q", old, reason)
	}
}

// While Ceph is silent, each look at a volume is answered in time, and all wait for the
// same read.
func TestSilentCeph(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.must(w.stage(t.Context()))
		w.must(w.publish(t.Context()))
		silence := make(chan struct{})
		var reads atomic.Int32
		w.server.host.readDevice = func(string, int) ([]byte, error) { reads.Add(1); <-silence; return nil, nil }
		for range 3 {
			began := time.Now()
			old, reason := w.condition(t.Context())
			if reason != "NoAnswer" || !strings.Contains(old, "Ceph does not answer") {
				t.Errorf("got %q, %q", old, reason)
			}
			if took := time.Since(began); took != 2*probeTimeout { // two calls
				t.Errorf("it took %v", took)
			}
		}
		if n := reads.Load(); n != 1 {
			t.Errorf("%d reads were begun", n)
		}
		close(silence)
		synctest.Wait()
		if _, reason := w.condition(t.Context()); reason != "" {
			t.Errorf("got %q", reason)
		}
	})
}

func TestExpand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.refused(w.expand(t.Context(), gib), codes.NotFound, "node-1")
		w.must(w.stage(t.Context()))
		w.refused(w.expand(t.Context(), gib), codes.NotFound, w.target) // not published
		w.must(w.publish(t.Context()))
		began := time.Now()
		w.refused(w.expand(t.Context(), 2*gib), codes.DeadlineExceeded, "/dev/rbd0", "1073741824", "2147483648", "rbd info")
		if took := time.Since(began); took > sizeTimeout+sizePoll {
			t.Errorf("it took %v", took)
		}
		// The kernel hears of it a second later.
		go func() {
			time.Sleep(time.Second)
			w.node.mu.Lock()
			defer w.node.mu.Unlock()
			w.image.size = 2 * gib
		}()
		w.must(w.expand(t.Context(), 2*gib))
		if w.image.fsSize != 2*gib {
			t.Errorf("got a file system of %d bytes", w.image.fsSize)
		}
		w.must(w.expand(t.Context(), 2*gib))

		w = newWorld(t)
		w.capability = block(writer)
		w.must(w.stage(t.Context()))
		w.must(w.publish(t.Context()))
		w.must(w.expand(t.Context(), gib))
	})
}
