// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"google.golang.org/grpc/codes"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/klog/v2"
	"k8s.io/utils/exec"

	"ceph.com/rbd-provisioner/provisioner/goceph"
	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/node"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// nodeCommand is the first argument of the node plugin.
const nodeCommand = "node"

// envNodeName is the node's name, which deploy/node/ takes from the Pod.
const envNodeName = "NODE_NAME"

// nodeOptions are the flags and the environment of the node plugin.
type nodeOptions struct {
	nodeID         string
	sockets        node.Sockets
	commandTimeout time.Duration
	httpEndpoint   string
	printVersion   bool
	logging        *logsapi.LoggingConfiguration
}

// parseNodeOptions is parseOptions for the node plugin.
func parseNodeOptions(args []string, getenv func(string) string, stdout io.Writer) (*nodeOptions, error) {
	o := &nodeOptions{logging: logsapi.NewLoggingConfiguration()}
	var commandTimeout int
	fs := flag.NewFlagSet("rbd-provisioner node", flag.ContinueOnError)
	// runNode prints the error, once.
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.nodeID, "node-id", "", "`name` of this node in Kubernetes (default: NODE_NAME)")
	fs.StringVar(&o.sockets.CSI, "endpoint", "/csi/csi.sock", "`path` of the socket for kubelet's calls")
	fs.StringVar(&o.sockets.KubeletCSI, "kubelet-endpoint", "/var/lib/kubelet/plugins/"+volume.CSIDriver+"/csi.sock", "`path` of that socket as kubelet sees it")
	fs.StringVar(&o.sockets.RegistrationDir, "registration-dir", "/registration", "`folder` in which kubelet looks for plugins, plugins_registry")
	fs.IntVar(&commandTimeout, "command-timeout", 15, "`seconds` that one Ceph operation may take, and the wait for monitors when an image is mapped")
	fs.StringVar(&o.httpEndpoint, "http-endpoint", "", "`address` for /healthz, /readyz and /metrics, as in :8081 (default: none)")
	fs.BoolVar(&o.printVersion, "version", false, "print versions and exit")
	addLoggingFlags(fs, o.logging)

	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			printNodeHelp(fs, stdout)
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: all settings are flags", fs.Arg(0))
	}
	o.nodeID = cmp.Or(o.nodeID, getenv(envNodeName))
	o.commandTimeout = time.Duration(commandTimeout) * time.Second
	return o, o.check()
}

// check names all faults at once.
func (o *nodeOptions) check() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if o.printVersion {
		return nil
	}
	if o.nodeID == "" {
		fault("the name of this node is not known: set %s, or give -node-id", envNodeName)
	}
	// With more, an answer would come after kubelet's own deadline, two minutes.
	if o.commandTimeout < time.Second || o.commandTimeout > time.Minute {
		fault("-command-timeout is %d: it must be from 1 to 60 seconds", o.commandTimeout/time.Second)
	}
	for name, path := range map[string]string{
		"-endpoint": o.sockets.CSI, "-kubelet-endpoint": o.sockets.KubeletCSI, "-registration-dir": o.sockets.RegistrationDir,
	} {
		if !filepath.IsAbs(path) {
			fault("%s is %q: it must be a path from the root", name, path)
		}
	}
	if o.httpEndpoint != "" {
		if _, _, err := net.SplitHostPort(o.httpEndpoint); err != nil {
			fault("-http-endpoint is %q: it must be an address and a port, as in :8081", o.httpEndpoint)
		}
	}
	if err := logsapi.Validate(o.logging, nil, nil).ToAggregate(); err != nil {
		fault("logging flags: %w", err)
	}
	return errors.Join(faults...)
}

func printNodeHelp(fs *flag.FlagSet, w io.Writer) {
	_, _ = fmt.Fprintf(w, `Usage: rbd-provisioner node [flags]

The node plugin: maps and mounts volumes that have a CSI source of the driver
%s, for the kubelet of the node that it runs on. See docs/node.md.

Environment:
  %s	name of this node, unless -node-id says it

Flags (one dash or two):
`, volume.CSIDriver, envNodeName)
	fs.SetOutput(w)
	fs.PrintDefaults()
}

// runNode is run for the node plugin.
func runNode(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	options, err := parseNodeOptions(args, getenv, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "rbd-provisioner node: %v\nSee rbd-provisioner node -help.\n", err)
		return 2
	case options.printVersion:
		printVersions(stdout)
		return 0
	}
	return untilSignal(options.logging, stderr, func(ctx context.Context) error { return serveNode(ctx, options) })
}

// serveNode works until ctx ends.
func serveNode(ctx context.Context, o *nodeOptions) error {
	logger := klog.FromContext(ctx)
	logger.Info("Starting the node plugin", "version", version, "librados", goceph.Version(), "node", o.nodeID, "driver", volume.CSIDriver)
	connector, err := goceph.New(goceph.Config{Timeout: o.commandTimeout})
	if err != nil {
		return err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := connector.Close(closing); err != nil {
			logger.Info("Left connections to Ceph open", "err", err)
		}
	}()
	kernel := krbd.New(krbd.Config{MapTimeout: o.commandTimeout})
	switch devices, err := kernel.Devices(); {
	case errors.Is(err, krbd.ErrNoDriver):
		// It may be loaded later.
		logger.Info("WARNING: no volume can be mounted", "err", err)
	case err != nil:
		return err
	default:
		logger.Info("Found Linux's rbd driver", "mapped", len(devices))
	}

	registry := newRegistry()
	registry.MustRegister(clusterCollector(connector.Versions))
	server, err := node.New(node.Config{
		NodeID: o.nodeID, Version: version,
		Kernel: kernel, Ceph: connector, Resolver: net.DefaultResolver, Mounts: node.SystemMounts(), Exec: exec.New(),
		CephTimeout: o.commandTimeout, Observe: newNodeObserver(registry),
	})
	if err != nil {
		return err
	}
	registerMapped(registry, server.Mapped)
	plugin := node.NewPlugin(server, o.sockets)
	// Restarting cures nothing that this process could know of.
	alive := func() error { return nil }
	stopHTTP, err := serveChecks(ctx, o.httpEndpoint, registry, alive, plugin.Ready)
	if err != nil {
		return err
	}
	defer stopHTTP()
	return plugin.Run(ctx)
}

// newNodeObserver shows how long kubelet's calls take: from some milliseconds to its two
// minutes.
func newNodeObserver(registry prometheus.Registerer) func(method string, code codes.Code, d time.Duration) {
	durations := promauto.With(registry).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "rbd_provisioner_node_call_duration_seconds",
		Help:    "Time that calls of kubelet to the node plugin took, by method of CSI and code of gRPC.",
		Buckets: prometheus.ExponentialBuckets(0.005, 3, 10),
	}, []string{"method", "code"})
	return func(method string, code codes.Code, d time.Duration) {
		durations.WithLabelValues(method, code.String()).Observe(d.Seconds())
	}
}

// registerMapped shows what the node plugin counts.
func registerMapped(registry prometheus.Registerer, count func() int) {
	promauto.With(registry).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "rbd_provisioner_node_mapped_images",
		Help: "Images that Linux's rbd driver had mapped on this node when the node plugin last looked, other programs' included.",
	}, func() float64 { return float64(count()) })
}
