// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"context"
	"fmt"
	"time"
)

// imageKey is what writes are remembered by. Images of two clusters may share one, and then
// wait for each other.
type imageKey struct{ pool, image string }

// write is what the driver is doing with an image.
type write struct {
	key   imageKey
	what  string // "mapped" or "unmapped"
	since time.Time
	done  chan struct{} // closed when it has ended
}

// claim waits until the driver does nothing with an image, and reserves it. What it returns
// must be released.
func (d *Driver) claim(ctx context.Context, key imageKey, what string) (*write, error) {
	for {
		own, other := d.tryClaim(key, what)
		if own != nil {
			return own, nil
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("it is still being %s for an earlier call, since %s: check with \"ceph -s\" that monitors and OSDs answer: %w",
				other.what, other.since.UTC().Format(time.RFC3339), ctx.Err())
		}
	}
}

func (d *Driver) tryClaim(key imageKey, what string) (own, other *write) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.writes[key]; other != nil {
		return nil, other
	}
	own = &write{key, what, time.Now(), make(chan struct{})}
	d.writes[key] = own
	return own, nil
}

func (d *Driver) release(own *write) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.writes, own.key)
	close(own.done)
}

// run calls do in a goroutine of its own, and releases own when that has ended. If the
// context ends before, what do returns without an error goes to undo: either the caller gets
// it or undo does.
func (d *Driver) run(ctx context.Context, own *write, do func() (Device, error), undo func(Device)) (Device, error) {
	type outcome struct {
		device Device
		err    error
	}
	result, left := make(chan outcome), make(chan struct{})
	go func() {
		defer d.release(own)
		device, err := do()
		select {
		case result <- outcome{device, err}:
		case <-left:
			if err == nil {
				undo(device)
			}
		}
	}()
	select {
	case o := <-result:
		return o.device, o.err
	case <-ctx.Done():
		close(left)
		return Device{}, fmt.Errorf("the driver has not answered, and goes on: check with \"ceph -s\" that monitors and OSDs answer: %w", ctx.Err())
	}
}
