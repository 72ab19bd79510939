// SPDX-License-Identifier: Apache-2.0

// Command demo shows the provisioner at work. "up" starts Ceph, Kubernetes and the
// provisioner on this machine, makes a volume from the files that a user would apply, and
// leaves everything running; with "-node" it adds a node, and a Pod that uses the volume.
// "down" ends all that. "make demo" and "make demo-down" run it, from the root of the
// repository.
//
// From Kubernetes 1.31 on, volumes need the node plugin of deploy/node/. The node gets its
// image from the file that the environment's PROVISIONER_ARCHIVE names.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ceph.com/rbd-provisioner/test/cluster"
)

const usage = "usage: demo up [-node] | demo down"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string) error {
	command := strings.Join(args, " ")
	node := command == "up -node"
	if command != "up" && !node && command != "down" {
		return errors.New(usage)
	}
	if node {
		// This starts the program again, and so comes first.
		if err := cluster.EnterNamespace(); err != nil {
			return err
		}
	}
	cache, err := cluster.CacheDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "demo")
	if command == "down" {
		return down(out, dir)
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return err
	}
	return up(ctx, out, dir, node)
}

func down(out io.Writer, dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		_, err := fmt.Fprintln(out, "The demo is not running")
		return err
	}
	if err := cluster.Remove(dir); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "The demo has ended; its servers, its data and its folder are gone")
	return err
}

// steps prints what is being done, and for how long.
type steps struct {
	out   io.Writer
	begin time.Time
}

func (s *steps) say(text string) {
	// If progress can't be shown, that is no reason to stop.
	_, _ = fmt.Fprintf(s.out, "%5.1f s  %s\n", time.Since(s.begin).Seconds(), text)
}
