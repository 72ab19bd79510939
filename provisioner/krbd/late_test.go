// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// hang makes each write about an image wait until the channel that it returns is closed.
func hang(f *FakeSysfs, file, image string) chan struct{} {
	gate := make(chan struct{})
	f.answer = func(to, text string) error {
		if to == file && (file == "remove_single_major" || strings.Contains(text, " "+image+" ")) {
			<-gate
		}
		return nil
	}
	return gate
}

// within calls Map with a time limit.
func within(t *testing.T, d *Driver, r Request, limit time.Duration) (Device, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return d.Map(ctx, r)
}

// TestLateDevice has a device appear after its caller left. It is unmapped again; whoever
// asks meanwhile waits for that, and gets a device of its own.
func TestLateDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newFake(t)
		gate := hang(f, "add_single_major", "img")
		r := request("img")
		_, err := within(t, d, r, 2*time.Second)
		wantError(t, err, context.DeadlineExceeded, r, "goes on", "ceph -s")
		_, err = within(t, d, r, 2*time.Second)
		wantError(t, err, context.DeadlineExceeded, r, "still being mapped for an earlier call, since 2000-01-01T00:00:00Z")

		next := make(chan Device)
		go func() { next <- mustMap(t, d, r) }()
		synctest.Wait()
		if lines := f.mapped(); len(lines) != 1 {
			t.Errorf("wrote %q while the first was on its way", lines)
		}
		close(gate)
		device := <-next
		synctest.Wait()
		if lines := f.mapped(); len(lines) != 2 || len(f.removed) != 1 {
			t.Errorf("wrote %q, removed %v", lines, f.removed)
		}
		must(t, d.Unmap(t.Context(), device.ID))
		noDevice(t, d)
	})
}

// TestLateDeviceStays is the same where the device can't be unmapped: the next caller takes it.
func TestLateDeviceStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newFake(t)
		gate := make(chan struct{})
		f.answer = func(file, _ string) error {
			if file == "remove_single_major" {
				return unix.EBUSY
			}
			<-gate
			return nil
		}
		_, err := within(t, d, request("img"), time.Second)
		wantError(t, err, context.DeadlineExceeded, request("img"))
		close(gate)
		if device := mustMap(t, d, request("img")); device.ID != 0 || len(f.mapped()) != 1 {
			t.Errorf("got %v after it wrote %q", device, f.mapped())
		}
	})
}

// TestTurn maps images while another's write hangs: they wait, but not for longer than a
// session may take.
func TestTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newFake(t)
		gate := hang(f, "add_single_major", "slow")
		slow, quick := request("slow"), request("quick")
		_, err := within(t, d, slow, time.Second)
		wantError(t, err, context.DeadlineExceeded, slow)
		_, err = within(t, d, quick, time.Second)
		wantError(t, err, context.DeadlineExceeded, quick, "nothing was done", `image "slow" of pool "rbd"`)
		if lines := f.mapped(); len(lines) != 1 {
			t.Errorf("wrote %q", lines)
		}
		if device := mustMap(t, d, quick); device.Image != "quick" {
			t.Errorf("got %v", device)
		}
		if got, want := time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)), d.timeout+sessionSlack; got != want {
			t.Errorf("it took %s, want %s", got, want)
		}
		// The first one's end gives no turn that it does not have.
		close(gate)
		mustMap(t, d, slow)
		synctest.Wait()
		if len(d.turn) != 0 || len(d.writes) != 0 {
			t.Errorf("%d turns and %d writes are left", len(d.turn), len(d.writes))
		}
	})
}

// TestGreetingEnds has monitors that are silent, until the time for that is over.
func TestGreetingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newFake(t)
		d.greet = func(ctx context.Context, _ []string, _ volume.Protocol) error {
			<-ctx.Done()
			return ErrUnreachable
		}
		begin := time.Now()
		_, err := d.Map(t.Context(), request("img"))
		wantError(t, err, ErrUnreachable, request("img"))
		if got := time.Since(begin); got != d.timeout || len(f.mapped()) != 0 {
			t.Errorf("it took %s, and wrote %q", got, f.mapped())
		}
	})
}

// TestSlowUnmap has Ceph hang while a device is removed: the caller leaves, the next one and
// those who want to map the image wait for it.
func TestSlowUnmap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newFake(t)
		r := request("img")
		device := mustMap(t, d, r)
		gate := hang(f, "remove_single_major", "")
		unmap := func(limit time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			return d.Unmap(ctx, device.ID)
		}
		wantError(t, unmap(time.Second), context.DeadlineExceeded, r, "/dev/rbd0", "goes on")
		wantError(t, unmap(time.Second), context.DeadlineExceeded, r, "still being unmapped")
		_, err := within(t, d, r, time.Second)
		wantError(t, err, context.DeadlineExceeded, r, "still being unmapped")
		close(gate)
		must(t, d.Unmap(t.Context(), device.ID))
		if mustMap(t, d, r); len(f.removed) != 1 || len(f.mapped()) != 2 {
			t.Errorf("wrote %q, removed %v", f.mapped(), f.removed)
		}
	})
}
