// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/goceph"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/ops"
)

const (
	// closeTimeout bounds closing connections to Ceph on an orderly stop; one that does not
	// answer stays open until the process ends. The removal of a large image may still use
	// one; the next leader takes it up.
	closeTimeout = 5 * time.Second
	// resyncPeriod is how often the loops look at everything again, in case they missed
	// something. The library has the same.
	resyncPeriod = 15 * time.Minute
	// serverRetry is how often the start asks an API server that does not answer.
	serverRetry = 2 * time.Second
	// watchdogTimeout is how late a leader may be with renewing its lease before
	// /healthz says so.
	watchdogTimeout = 20 * time.Second
)

// serve works until ctx ends. When it returns nil, all that it started has stopped.
func serve(ctx context.Context, o *options) (err error) {
	// A lost lease skips the orderly close: the process has to end.
	var closers []func()
	defer func() {
		if errors.Is(err, errLeaseLost) {
			return
		}
		for _, closer := range slices.Backward(closers) {
			closer()
		}
	}()
	logger := klog.FromContext(ctx)
	logger.Info("Starting", "version", version, "librados", goceph.Version(), "provisioner", o.provisionerName, "identity", o.identity)
	for _, name := range o.ignored {
		logger.Info("A flag of the retired provisioner has no effect", "flag", name)
	}
	client, leases, err := newClients(o)
	if err != nil {
		return err
	}

	registry := newRegistry()
	watchdog := leaderelection.NewLeaderHealthzAdaptor(watchdogTimeout)
	var ready atomic.Bool
	stopHTTP, err := serveHTTP(ctx, o.httpEndpoint, registry, watchdog, &ready)
	if err != nil {
		return err
	}
	closers = append(closers, stopHTTP)

	if err := checkServer(ctx, o, client); err != nil {
		return nil // ctx has ended
	}

	clusterUID, err := readClusterUID(ctx, client.CoreV1())
	if err != nil {
		return nil // ctx has ended
	}

	// Not before: reading the cluster's UID waits for rights that come into force late.
	mountable := newNodes(client)
	logNodes(ctx, mountable)

	connector, err := goceph.New(goceph.Config{Timeout: o.commandTimeout})
	if err != nil {
		return err
	}
	closers = append(closers, func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := connector.Close(closing); err != nil {
			logger.Info("Left connections to Ceph open", "err", err)
		}
	})
	registry.MustRegister(clusterCollector(connector.Versions))
	tenure := &tenure{length: o.renewDeadline}
	guard := lease.New(tenure.leading)
	if !o.leaderElection {
		guard = lease.New(nil)
	}
	open, err := access.New(access.Config{Secrets: client.CoreV1(), Connector: connector, Workers: o.workers,
		Lease: guard, Observe: newCephObserver(registry)})
	if err != nil {
		return err
	}

	factory := newInformers(client)
	c, err := newController(ctx, controllerConfig{
		options: o, clusterUID: clusterUID, client: client, informers: factory, access: open, nodes: mountable, guard: guard, registry: registry,
	})
	if err != nil {
		return err
	}
	// The caches fill before this replica leads, so that it can then work at once.
	cachesCtx, stopCaches := context.WithCancel(context.WithoutCancel(ctx))
	closers = append(closers, factory.Shutdown, stopCaches)
	factory.StartWithContext(cachesCtx)
	if err := factory.WaitForCacheSyncWithContext(ctx).AsError(); err != nil {
		return nil // ctx has ended
	}
	ready.Store(true)
	logger.Info("Ready")

	if !o.leaderElection {
		if err := c.run(ctx); err != nil {
			logger.Info("Stopping with operations under way; the next start continues them", "err", err)
		}
		return nil
	}
	return lead(ctx, o, leases, watchdog, tenure, c.run)
}

// checkServer waits for the API server and logs what an administrator should
// know before the first claim. It returns an error only when ctx ends.
func checkServer(ctx context.Context, o *options, client kubernetes.Interface) error {
	logger := klog.FromContext(ctx)
	var logged sync.Once
	err := wait.PollUntilContextCancel(ctx, serverRetry, true, func(context.Context) (bool, error) {
		v, err := client.Discovery().ServerVersion()
		if err != nil {
			logged.Do(func() { logger.Error(err, "The API server does not answer, will retry") })
			return false, nil //nolint:nilerr // an error would end the wait
		}
		logger.Info("Connected to the API server", "version", v.GitVersion)
		return true, nil
	})
	if err != nil {
		return err
	}
	logMissingPermissions(ctx, client.AuthorizationV1().SelfSubjectAccessReviews(), o.permissions(o.podNamespace))
	return nil
}

// serveHTTP answers on address, if it is not empty, until its caller calls the returned
// function. It keeps answering while an orderly stop drains.
func serveHTTP(ctx context.Context, address string, registry prometheus.Gatherer, watchdog *leaderelection.HealthzAdaptor, ready *atomic.Bool) (func(), error) {
	live := func() error {
		if err := watchdog.Check(nil); err != nil {
			return fmt.Errorf("lease: %w", err)
		}
		return nil
	}
	filled := func() error {
		if !ready.Load() {
			return errors.New("caches: not filled yet")
		}
		return nil
	}
	return serveChecks(ctx, address, registry, live, filled)
}

// serveChecks is serveHTTP with what /healthz and /readyz say.
func serveChecks(ctx context.Context, address string, registry prometheus.Gatherer, live, ready func() error) (func(), error) {
	if address == "" {
		return func() {}, nil
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("-http-endpoint: %w", err)
	}
	logger := klog.FromContext(ctx)
	logger.Info("Serving /healthz, /readyz and /metrics", "address", listener.Addr().String())
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := ops.Serve(ctx, listener, ops.Handler(live, ready, registry)); err != nil {
			// The probes will see it and have the Pod replaced.
			logger.Error(err, "The HTTP endpoint stopped")
		}
	})
	return func() { cancel(); serving.Wait() }, nil
}
