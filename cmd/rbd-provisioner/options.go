// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/logs/json/register" // -logging-format=json

	"ceph.com/rbd-provisioner/provisioner"
	"ceph.com/rbd-provisioner/provisioner/image"
)

// options are the flags and the environment.
type options struct {
	master     string
	kubeconfig string

	provisionerName string
	identity        string
	usePVName       bool
	commandTimeout  time.Duration
	workers         int
	expansion       bool
	maxCloneDepth   int
	warnVolumeSize  resource.QuantityValue

	qps   float64
	burst int

	// podNamespace is where this process runs, or "default" outside a cluster.
	podNamespace string

	leaderElection bool
	leaseNamespace string
	leaseDuration  time.Duration
	renewDeadline  time.Duration
	retryPeriod    time.Duration

	// httpEndpoint is empty for no server.
	httpEndpoint string

	printVersion bool
	logging      *logsapi.LoggingConfiguration
	// ignored are the given flags of the retired provisioner that no longer have an effect.
	ignored []string
}

// Environment variables.
const (
	envProvisionerName = "PROVISIONER_NAME"
	envPodNamespace    = "POD_NAMESPACE"
)

// namespaceFile holds a Pod's namespace, even where the Deployment sets no
// POD_NAMESPACE, as the retired provisioner's does not.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// parseOptions reads flags and environment. The error names all faults at once; it is
// flag.ErrHelp after printing requested help to stdout.
func parseOptions(args []string, getenv func(string) string, stdout io.Writer) (*options, error) {
	o := &options{
		provisionerName: cmp.Or(getenv(envProvisionerName), provisioner.DefaultName),
		logging:         logsapi.NewLoggingConfiguration(),
		warnVolumeSize:  resource.QuantityValue{Quantity: resource.MustParse("1Pi")},
	}
	var commandTimeout, metricsPort int

	fs := flag.NewFlagSet("rbd-provisioner", flag.ContinueOnError)
	// run prints the error, once.
	fs.SetOutput(io.Discard)
	fs.StringVar(&o.master, "master", "", "address of the API server, when it is not the one of the kubeconfig or the cluster")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig `file`, when not running in a Pod")
	fs.StringVar(&o.identity, "id", "", "identity of this provisioner, written on its volumes; volumes of another identity are left alone (default: the provisioner's name)")
	fs.BoolVar(&o.usePVName, "use-pv-name", false, "name images like their PersistentVolume, pvc-UID, instead of kubernetes-dynamic-pvc-UID")
	fs.IntVar(&commandTimeout, "command-timeout", 15, "`seconds` that one Ceph operation may take")
	fs.IntVar(&o.workers, "worker-threads", 100, "claims, and likewise volumes, worked on at a time")
	fs.BoolVar(&o.expansion, "expansion", true, "grow volumes whose claim asks for more, which needs the rights of rbac/resize-*.yaml")
	fs.IntVar(&o.maxCloneDepth, "max-clone-depth", 4, "images that a clone may depend on, one through the other; one with more is flattened before its claim gets it, with 0 every clone")
	fs.Var(&o.warnVolumeSize, "warn-volume-size", "`size` above which a volume is made all the same, but its claim gets a warning; 0 for none")
	fs.Float64Var(&o.qps, "kube-api-qps", 500, "requests per second to the API server, in the long run")
	fs.IntVar(&o.burst, "kube-api-burst", 1000, "requests to the API server in a burst")
	fs.BoolVar(&o.leaderElection, "leader-election", true, "let one of several replicas work at a time")
	fs.StringVar(&o.leaseNamespace, "leader-election-namespace", "", "namespace of the lease (default: the Pod's)")
	fs.DurationVar(&o.leaseDuration, "leader-election-lease-duration", 15*time.Second, "time after which a lease that was not renewed may be taken")
	fs.DurationVar(&o.renewDeadline, "leader-election-renew-deadline", 10*time.Second, "time after which a leader that can't renew its lease stops")
	fs.DurationVar(&o.retryPeriod, "leader-election-retry-period", 800*time.Millisecond, "time between attempts to take or renew the lease")
	fs.StringVar(&o.httpEndpoint, "http-endpoint", "", "`address` for /healthz, /readyz and /metrics, as in :8080 (default: none)")
	fs.IntVar(&metricsPort, "metrics-port", 0, "`port` for the same on all addresses; kept for Deployments of the retired provisioner")
	fs.BoolVar(&o.printVersion, "version", false, "print versions and exit")
	addLoggingFlags(fs, o.logging)
	o.addRetiredFlags(fs)

	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			printHelp(fs, stdout)
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: all settings are flags", fs.Arg(0))
	}
	o.identity = cmp.Or(o.identity, o.provisionerName)
	o.commandTimeout = time.Duration(commandTimeout) * time.Second
	return o, o.complete(commandTimeout, metricsPort, getenv)
}

// addLoggingFlags adds the stable flags of component-base; the others are about buffers.
func addLoggingFlags(fs *flag.FlagSet, logging *logsapi.LoggingConfiguration) {
	all := flag.NewFlagSet("", flag.ContinueOnError)
	logsapi.AddGoFlags(logging, all)
	for _, name := range []string{"v", "vmodule", "logging-format", logsapi.LogFlushFreqFlagName} {
		f := all.Lookup(name)
		fs.Var(f.Value, f.Name, f.Usage)
	}
}

// retiredUsage marks flags that -help does not list.
const retiredUsage = "has no effect; accepted for Deployments of the retired provisioner"

// addRetiredFlags accepts the logging flags that the retired provisioner had from glog:
// an existing Deployment keeps working. The log goes to standard error anyway.
func (o *options) addRetiredFlags(fs *flag.FlagSet) {
	ignore := func(name string) func(string) error {
		return func(string) error { o.ignored = append(o.ignored, "-"+name); return nil }
	}
	for _, name := range []string{"logtostderr", "alsologtostderr"} {
		fs.BoolFunc(name, retiredUsage, ignore(name))
	}
	for _, name := range []string{"stderrthreshold", "log_dir", "log_backtrace_at"} {
		fs.Func(name, retiredUsage, ignore(name))
	}
}

// complete checks flags, also against one another, and fills in what the environment knows.
func (o *options) complete(commandTimeout, metricsPort int, getenv func(string) string) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	require := func(holds bool, format string, args ...any) {
		if !holds {
			fault(format, args...)
		}
	}

	require(commandTimeout >= 1, "-command-timeout is %d: it must be at least 1 second", commandTimeout)
	require(o.workers >= 1, "-worker-threads is %d: it must be at least 1", o.workers)
	require(o.maxCloneDepth >= 0 && o.maxCloneDepth <= image.CloneDepthLimit,
		"-max-clone-depth is %d: it must be 0 to %d, what Linux can map", o.maxCloneDepth, image.CloneDepthLimit)
	require(o.qps > 0 && o.burst >= 1, "-kube-api-qps is %v and -kube-api-burst is %d: both must be above 0", o.qps, o.burst)
	// The leaderelection package wants room for its jitter of 1.2.
	require(!o.leaderElection || o.retryPeriod > 0 && o.renewDeadline > o.retryPeriod*6/5 && o.leaseDuration > o.renewDeadline,
		"-leader-election-lease-duration (%v) must be above -leader-election-renew-deadline (%v), "+
			"and that above 1.2 times -leader-election-retry-period (%v)", o.leaseDuration, o.renewDeadline, o.retryPeriod)
	if problems := validation.IsQualifiedName(strings.ToLower(o.provisionerName)); len(problems) > 0 {
		fault("%s is %q, which no StorageClass can name: %s", envProvisionerName, o.provisionerName, problems[0])
	} else if o.leaderElection && len(validation.IsDNS1123Subdomain(o.leaseName())) > 0 {
		fault("%s is %q: no lease can be named after it; use a name without underscores, or -leader-election=false",
			envProvisionerName, o.provisionerName)
	}
	switch {
	case metricsPort < 0 || metricsPort > 65535:
		fault("-metrics-port is %d: it must be a port, or 0 for none", metricsPort)
	case metricsPort > 0 && o.httpEndpoint != "":
		fault("-metrics-port and -http-endpoint say the same: give one of them")
	case metricsPort > 0:
		o.httpEndpoint = net.JoinHostPort("", strconv.Itoa(metricsPort))
	}
	if o.httpEndpoint != "" {
		if _, _, err := net.SplitHostPort(o.httpEndpoint); err != nil {
			fault("-http-endpoint is %q: it must be an address and a port, as in :8080", o.httpEndpoint)
		}
	}
	if err := logsapi.Validate(o.logging, nil, nil).ToAggregate(); err != nil {
		fault("logging flags: %w", err)
	}
	file, _ := os.ReadFile(namespaceFile) // no file, no Pod
	o.podNamespace = cmp.Or(getenv(envPodNamespace), strings.TrimSpace(string(file)), "default")
	o.leaseNamespace = cmp.Or(o.leaseNamespace, o.podNamespace)
	return errors.Join(faults...)
}

func printHelp(fs *flag.FlagSet, w io.Writer) {
	_, _ = fmt.Fprintf(w, `Usage: rbd-provisioner [flags]
       rbd-provisioner node [flags]

Makes Ceph RBD images and PersistentVolumes for claims of StorageClasses that
name it as their provisioner. "rbd-provisioner node" is the node plugin, which
mounts volumes with a CSI source; "rbd-provisioner node -help" has its flags.

Environment:
  %s	what a StorageClass names as its provisioner (default %s)
  %s	namespace of the lease, unless -leader-election-namespace says it

Flags (one dash or two):
`, envProvisionerName, provisioner.DefaultName, envPodNamespace)
	shown := flag.NewFlagSet("", flag.ContinueOnError)
	fs.VisitAll(func(f *flag.Flag) {
		if f.Usage != retiredUsage {
			shown.Var(f.Value, f.Name, f.Usage)
		}
	})
	shown.SetOutput(w)
	shown.PrintDefaults()
}
