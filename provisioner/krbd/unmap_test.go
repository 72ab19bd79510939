// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"context"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestUnmap checks what becomes of the driver's answers to an attempt to unmap.
func TestUnmap(t *testing.T) {
	// The driver gives each answer once, and the last one again and again; nil removes it.
	for name, test := range map[string]struct {
		answers []error
		holder  string
		want    error
		text    string
		took    time.Duration
	}{
		"at once":            {answers: []error{nil}},
		"udev has it open":   {answers: []error{unix.EBUSY, unix.EBUSY, unix.EBUSY, nil}, took: 3 * busyPause},
		"others unmap it":    {answers: []error{unix.EINPROGRESS, unix.ENOENT}, took: busyPause},
		"gone by now":        {answers: []error{unix.ENOENT}},
		"mounted":            {answers: []error{unix.EBUSY}, want: ErrBusy, text: "mountinfo", took: busyLimit},
		"LVM is built on it": {answers: []error{unix.EBUSY}, holder: "dm-3", want: ErrBusy, text: "dm-3", took: busyLimit},
		"anything else":      {answers: []error{unix.EIO}, want: unix.EIO, text: "kernel log"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, f := newFake(t)
				device := mustMap(t, d, request("img"))
				if test.holder != "" {
					must(t, os.Mkdir(f.path("block/rbd0/holders", test.holder), 0o755))
				}
				f.answer = func(_, _ string) error {
					answer := test.answers[0]
					if len(test.answers) > 1 {
						test.answers = test.answers[1:]
					}
					return answer
				}
				begin := time.Now()
				err := d.Unmap(t.Context(), device.ID)
				if test.want == nil {
					must(t, err)
				} else {
					wantError(t, err, test.want, Request{}, "/dev/rbd0", `"img"`, `"rbd"`, test.text)
				}
				if took := time.Since(begin); took != test.took {
					t.Errorf("it took %s, want %s", took, test.took)
				}
			})
		})
	}
}

// TestUnmapNothing unmaps what is not there.
func TestUnmapNothing(t *testing.T) {
	d, _ := newFake(t)
	must(t, d.Unmap(t.Context(), 7))
}

// TestUnmapEnds ends the context while the device is busy: nothing goes on.
func TestUnmapEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, f := newFake(t)
		device := mustMap(t, d, request("img"))
		f.answer = func(_, _ string) error { return unix.EBUSY }
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wantError(t, d.Unmap(ctx, device.ID), context.DeadlineExceeded, Request{})
		synctest.Wait()
		f.answer = nil
		time.Sleep(busyLimit)
		if len(f.removed) != 0 {
			t.Error("it was unmapped later")
		}
	})
}

// TestNumberOfAnother has the number of a device become another image's.
func TestNumberOfAnother(t *testing.T) {
	d, f := newFake(t)
	device := mustMap(t, d, request("img"))
	must(t, d.Unmap(t.Context(), device.ID))
	if mustMap(t, d, request("other")).ID != device.ID {
		t.Fatal("the number was not used again")
	}
	must(t, d.unmap(t.Context(), device))
	if len(f.removed) != 1 {
		t.Errorf("removed %v", f.removed)
	}
}
