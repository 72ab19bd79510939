// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	// busyLimit bounds the wait for whoever has a device open. udev reads new devices, and
	// takes seconds on a busy node.
	busyLimit = 10 * time.Second
	busyPause = 100 * time.Millisecond
)

// Unmap removes a device; one that is not there is no error. The caller makes sure that
// nothing has it mounted: the error is ErrBusy if something still uses it after some
// seconds. When the context ends, the driver may go on.
func (d *Driver) Unmap(ctx context.Context, id int) error {
	device, found, err := d.device(id)
	if err != nil || !found {
		return err
	}
	if err := d.unmap(ctx, device); err != nil {
		return fmt.Errorf("unmap %s, image %q of pool %q: %w", device.Path(), device.Image, device.Pool, err)
	}
	return nil
}

func (d *Driver) unmap(ctx context.Context, device Device) error {
	own, err := d.claim(ctx, imageKey{device.Pool, device.Image}, "unmapped")
	if err != nil {
		return err
	}
	_, err = d.run(ctx, own, func() (Device, error) { return Device{}, d.remove(ctx, device) }, func(Device) {})
	return err
}

// remove unmaps a device unless its number has become another image's, and waits for whoever
// has it open.
func (d *Driver) remove(ctx context.Context, device Device) error {
	waiting, cancel := context.WithTimeout(ctx, busyLimit)
	defer cancel()
	err := wait.PollUntilContextCancel(waiting, busyPause, true, func(context.Context) (bool, error) {
		now, found, err := d.device(device.ID)
		if err != nil || !found || !now.sameImage(device) {
			return true, err
		}
		err = d.write([]string{"remove_single_major", "remove"}, strconv.Itoa(device.ID))
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			return true, nil
		case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINPROGRESS): // the latter: somebody else unmaps it
			return false, nil
		}
		return false, fmt.Errorf("%w: see what rbd: and libceph: say in the node's kernel log", err)
	})
	switch {
	case err == nil:
		return nil
	case !wait.Interrupted(err):
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("%w: %w", d.inUse(device), ctx.Err())
	}
	return d.inUse(device)
}

// inUse says who has a device open, as far as sysfs knows.
func (d *Driver) inUse(device Device) error {
	holders, err := os.ReadDir(filepath.Join(d.sysfs, "block", device.name(), "holders"))
	if err != nil || len(holders) == 0 {
		return fmt.Errorf("%w: something on the node has it open or mounted: see \"grep %s /proc/*/mountinfo\" and \"fuser %s\" there",
			ErrBusy, device.name(), device.Path())
	}
	names := make([]string, len(holders))
	for i, holder := range holders {
		names[i] = holder.Name()
	}
	return fmt.Errorf("%w: %s on the node is built on it: remove that, and keep LVM and multipath of the node from rbd devices",
		ErrBusy, strings.Join(names, ", "))
}
