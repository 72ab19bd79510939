// SPDX-License-Identifier: Apache-2.0

// Command mapper maps images with package krbd on the node of the tests, and says what came
// of it. It reads Steps from its standard input, because a key must not be an argument, and
// writes an Outcome for each, both as lines of JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Step is what to map, see krbd.Request.
type Step struct {
	FSID                            string
	Monitors                        []string
	User, Key, Pool, Image, Options string
	ReadOnly                        bool
	// Keep leaves the device for the next step.
	Keep bool
}

// Outcome is what came of a step.
type Outcome struct {
	Device krbd.Device
	Path   string
	// Error has the text, Kind the name of one of krbd's errors that it is.
	Error, Kind string
	Took        time.Duration
	// Keys are keys of Ceph that the kernel has still got.
	Keys int
}

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	// The Pod's own /dev is a copy from its start.
	driver := krbd.New(krbd.Config{Dev: "/proc/1/root/dev"})
	steps := json.NewDecoder(in)
	outcomes := json.NewEncoder(out)
	for {
		var s Step
		if err := steps.Decode(&s); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := outcomes.Encode(take(driver, s)); err != nil {
			return err
		}
	}
}

func take(driver *krbd.Driver, s Step) Outcome {
	ctx := context.Background()
	begin := time.Now()
	device, err := mapImage(ctx, driver, s)
	o := Outcome{Device: device, Took: time.Since(begin), Path: device.Path(), Kind: kind(err)}
	if err == nil && !s.Keep {
		err = driver.Unmap(ctx, device.ID)
	}
	if err != nil {
		o.Error = err.Error()
	}
	o.Keys = keysLeft(ctx)
	return o
}

// keysLeft counts the kernel's keys of Ceph. It clears away a little later those that nobody
// has any more.
func keysLeft(ctx context.Context) (n int) {
	// The count says what the wait ended with.
	_ = wait.PollUntilContextTimeout(ctx, 100*time.Millisecond, 10*time.Second, true, func(context.Context) (bool, error) {
		keys, err := os.ReadFile("/proc/keys")
		if err != nil {
			n = -1
			return false, err
		}
		n = strings.Count(string(keys), " ceph ")
		return n == 0, nil
	})
	return n
}

func mapImage(ctx context.Context, driver *krbd.Driver, s Step) (krbd.Device, error) {
	key, err := rbd.ParseKey(s.Key)
	if err != nil {
		return krbd.Device{}, err
	}
	options, err := volume.ParseMapOptions(s.Options)
	if err != nil {
		return krbd.Device{}, err
	}
	return driver.Map(ctx, krbd.Request{
		FSID: s.FSID, Monitors: s.Monitors, User: s.User, Key: key,
		Pool: s.Pool, Image: s.Image, Options: options, ReadOnly: s.ReadOnly,
	})
}

func kind(err error) string {
	for name, target := range map[string]error{
		"denied": krbd.ErrDenied, "caps": krbd.ErrCaps, "not found": krbd.ErrNotFound,
		"unreachable": krbd.ErrUnreachable, "invalid": krbd.ErrInvalid, "busy": krbd.ErrBusy,
		"no driver": krbd.ErrNoDriver, "other cluster": krbd.ErrOtherCluster,
	} {
		if errors.Is(err, target) {
			return name
		}
	}
	return ""
}
