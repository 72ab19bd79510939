// SPDX-License-Identifier: Apache-2.0

// Package krbd maps images with Linux's rbd driver, without the rbd command: it writes to
// sysfs, and the key goes through the kernel's keyrings. It formats and mounts nothing, and
// knows neither Kubernetes nor CSI.
//
// A write to sysfs heeds no context. Where Ceph is silent it may last for long, so it has a
// goroutine of its own, which the Driver remembers: there is one for each image at most, and
// whoever wants the same image later waits for it.
package krbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	// defaultMapTimeout replaces the driver's own minute: others wait for their turn.
	defaultMapTimeout = 15 * time.Second
	// sessionSlack is how much longer than its mount_timeout the driver may take to open a
	// session. What it waits for later are OSDs, and that holds up no other image.
	sessionSlack = 5 * time.Second
)

// Config says where the kernel's folders are. The zero Config is that of a node.
type Config struct {
	Sysfs string // "/sys" if empty
	Dev   string // "/dev" if empty
	// MapTimeout bounds the wait for monitors, in whole seconds; 15 s if 0. The driver calls
	// it mount_timeout.
	MapTimeout time.Duration
}

// Driver is Linux's rbd driver. It is safe for concurrent use. A node must have one process
// with one Driver: it keeps writes from meeting each other.
type Driver struct {
	sysfs, dev string
	timeout    time.Duration
	kernel     kernel
	// greet returns nil when one of the monitors speaks the protocol.
	greet func(ctx context.Context, monitors []string, speak volume.Protocol) error

	// turn has one element while the driver opens a session: it opens one at a time, so one
	// silent monitor would stop every other map on the node.
	turn chan struct{}

	mu      sync.Mutex // guards all that follows
	writes  map[imageKey]*write
	current string // what has, or last had, the turn
}

// New returns a Driver. It does not look whether the node has one, see ErrNoDriver.
func New(c Config) *Driver {
	d := &Driver{
		sysfs: c.Sysfs, dev: c.Dev, timeout: c.MapTimeout, kernel: linux{keyType: "ceph"}, greet: greet,
		turn: make(chan struct{}, 1), writes: map[imageKey]*write{},
	}
	if d.sysfs == "" {
		d.sysfs = "/sys"
	}
	if d.dev == "" {
		d.dev = "/dev"
	}
	if d.timeout <= 0 {
		d.timeout = defaultMapTimeout
	}
	return d
}

// Request says which image to map, and how.
type Request struct {
	// FSID is the Ceph cluster that the image must be in. If it is empty, any; a device is
	// then the image's if it was mapped with one of the same monitors.
	FSID string
	// Monitors are "IP:port", of the protocol of Options: the driver resolves no names.
	Monitors    []string
	User        string // without "client."
	Key         rbd.Key
	Pool, Image string
	Options     volume.MapOptions
	ReadOnly    bool
}

// Map returns the image's device: the one that an earlier Map made, whatever its options are,
// or a new one. The error is one line, says what to do, and wraps one of this package's or the
// context's. When the context ends, the driver may go on; a device that it makes after that
// is unmapped again.
func (d *Driver) Map(ctx context.Context, r Request) (Device, error) {
	device, err := d.mapImage(ctx, r)
	if err != nil {
		return Device{}, fmt.Errorf("map %s: %w", r, err)
	}
	return device, nil
}

func (d *Driver) mapImage(ctx context.Context, r Request) (Device, error) {
	if err := r.check(); err != nil {
		return Device{}, err
	}
	own, err := d.claim(ctx, imageKey{r.Pool, r.Image}, "mapped")
	if err != nil {
		return Device{}, err
	}
	pass, device, err := d.prepare(ctx, r)
	if pass == nil {
		d.release(own)
		return device, err
	}
	return d.run(ctx, own, func() (Device, error) {
		defer pass()
		return d.add(ctx, r)
	}, func(device Device) {
		log := klog.FromContext(ctx).WithValues("pool", r.Pool, "image", r.Image, "device", device.Path())
		if err := d.undo(ctx, device); err != nil {
			log.Error(err, "A device was mapped too late for the call that asked for it, and is left; the next one for this image takes it")
			return
		}
		log.Info("Unmapped a device that was mapped too late for the call that asked for it")
	})
}

// prepare does what comes before the write. Without an error, it returns either the device,
// if the image has one already, or a function that ends our turn.
func (d *Driver) prepare(ctx context.Context, r Request) (pass func(), device Device, err error) {
	if device, found, err := d.existing(r); found || err != nil {
		return nil, device, err
	}
	// A monitor that is silent here need not hold up the others' images.
	greeting, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	if err := d.greet(greeting, r.Monitors, r.Options.Protocol()); err != nil {
		return nil, Device{}, err
	}
	pass, err = d.takeTurn(ctx, r.String())
	return pass, Device{}, err
}

// existing looks for a device of the image. The error says that it can't be used.
func (d *Driver) existing(r Request) (device Device, found bool, err error) {
	entries, err := d.entries()
	if err != nil {
		return Device{}, false, err
	}
	var other error
	for _, e := range entries {
		switch {
		case !e.is(r):
		case !e.Ours:
			// It may be unmapped at any moment, and the kernel would not mind a second one.
			other = fmt.Errorf("%w: another program of this node has it as %s: unmap it there (rbd unmap %[2]s)", ErrBusy, e.Path())
		case e.ReadOnly == r.ReadOnly:
			return e.Device, true, d.checkNode(e.Device)
		default:
			other = fmt.Errorf("%w: this node has it as %s, which is %s, and it is wanted %s: that is possible once nothing uses that device any more",
				ErrBusy, e.Path(), access(e.ReadOnly), access(r.ReadOnly))
		}
	}
	return Device{}, false, other
}

func access(readOnly bool) string {
	if readOnly {
		return "read-only"
	}
	return "writable"
}

// takeTurn waits until no other image is being mapped. Each call of pass but the first does
// nothing; it is also called once the session must be open.
func (d *Driver) takeTurn(ctx context.Context, what string) (pass func(), err error) {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		d.mu.Lock()
		defer d.mu.Unlock()
		return nil, fmt.Errorf("nothing was done, since one image is mapped at a time and others had their turn, as %s: %w", d.current, ctx.Err())
	}
	d.mu.Lock()
	d.current = what
	d.mu.Unlock()
	once := sync.OnceFunc(func() { <-d.turn })
	timer := time.AfterFunc(d.timeout+sessionSlack, once)
	return func() { timer.Stop(); once() }, nil
}

// add maps the image and looks at what became of it. It leaves no device when it fails.
func (d *Driver) add(ctx context.Context, r Request) (Device, error) {
	name := newKeyName()
	if err := d.writeWithKey(ctx, r.line(name, d.timeout), name, r.Key); err != nil {
		return Device{}, r.explain(err)
	}
	entries, err := d.entries()
	if err != nil {
		return Device{}, err
	}
	for _, e := range entries {
		if e.keyName() != name {
			continue
		}
		err := d.checkNode(e.Device)
		if r.FSID != "" && e.FSID != r.FSID {
			err = fmt.Errorf("%w: that is %s, and the volume is of %s: correct the monitors", ErrOtherCluster, e.FSID, r.FSID)
		}
		if err != nil {
			if left := d.undo(ctx, e.Device); left != nil {
				err = fmt.Errorf("%w; %s is left: %w", err, e.Path(), left)
			}
			return Device{}, err
		}
		return e.Device, nil
	}
	return Device{}, errors.New("the driver reported success, but there is no device: see what rbd: says in the node's kernel log")
}

// undo unmaps a device that nobody wants. The caller's context may have ended.
func (d *Driver) undo(ctx context.Context, device Device) error {
	return d.remove(context.WithoutCancel(ctx), device)
}
