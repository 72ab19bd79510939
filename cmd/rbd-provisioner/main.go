// SPDX-License-Identifier: Apache-2.0

// Rbd-provisioner makes Ceph RBD images and PersistentVolumes for claims of
// StorageClasses that name it, and removes them again. "rbd-provisioner node" is the
// node plugin, which mounts volumes for Pods.
//
// This package chooses and connects: flags, clients, caches, leader election,
// and the order in which things start and stop.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/goceph"
)

// version is set by the linker.
var version = "devel"

func main() {
	os.Exit(run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// run is the program. It returns 0 after an orderly stop, 1 after a failure, 2 for
// wrong arguments.
func run(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == nodeCommand {
		return runNode(args[1:], getenv, stdout, stderr)
	}
	options, err := parseOptions(args, getenv, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "rbd-provisioner: %v\nSee rbd-provisioner -help.\n", err)
		return 2
	case options.printVersion:
		printVersions(stdout)
		return 0
	}
	return untilSignal(options.logging, stderr, func(ctx context.Context) error { return serve(ctx, options) })
}

func printVersions(w io.Writer) {
	_, _ = fmt.Fprintf(w, "rbd-provisioner %s\nlibrados %s\n%s %s/%s\n",
		version, goceph.Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// untilSignal runs serve until a signal comes, and returns the program's exit code.
func untilSignal(logging *logsapi.LoggingConfiguration, stderr io.Writer, serve func(context.Context) error) int {
	if err := logsapi.ValidateAndApply(logging, nil); err != nil {
		_, _ = fmt.Fprintf(stderr, "rbd-provisioner: %v\n", err)
		return 2
	}
	defer klog.Flush()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)

	logger := klog.Background()
	if err := serve(klog.NewContext(ctx, logger)); err != nil {
		logger.Error(err, "Stopped")
		return 1
	}
	logger.Info("Stopped")
	return 0
}
