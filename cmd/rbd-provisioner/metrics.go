// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/tools/leaderelection"
	clientmetrics "k8s.io/client-go/tools/metrics"

	"ceph.com/rbd-provisioner/provisioner/goceph"
)

// newRegistry returns a registry of our own: what else lives in the default one
// is no promise to anybody.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "rbd_provisioner_build_info",
		Help: "Versions of this program and its libraries; always 1.",
		ConstLabels: prometheus.Labels{
			"version":   version,
			"librados":  goceph.Version(),
			"goversion": runtime.Version(),
		},
	})
	build.Set(1)
	leader := leaderGauge{prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "leader_election_master_status",
		Help: "1 while this replica holds the lease of the name, otherwise 0.",
	}, []string{"name"})}
	leaderelection.SetProvider(leader)
	requests := requestCounter{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rest_client_requests_total",
		Help: "Number of HTTP requests, partitioned by status code, method, and host.",
	}, []string{"code", "method", "host"})}
	clientmetrics.Register(clientmetrics.RegisterOpts{RequestResult: requests})
	registry.MustRegister(
		leader,
		requests,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build,
	)
	return registry
}

// leaderGauge tells who leads, under the name that the components of Kubernetes
// give it. client-go sets it.
type leaderGauge struct{ *prometheus.GaugeVec }

func (g leaderGauge) NewLeaderMetric() leaderelection.LeaderMetric { return g }
func (g leaderGauge) On(name string)                               { g.WithLabelValues(name).Set(1) }
func (g leaderGauge) Off(name string)                              { g.WithLabelValues(name).Set(0) }

// SlowpathExercised counts renewals that had to read the lease first, which says
// nothing to an administrator.
func (g leaderGauge) SlowpathExercised(string) {}

// requestCounter counts requests to the API server, under the name that the
// components of Kubernetes give it. client-go counts. The adapter in
// component-base can't be used: it keeps to a registry of its own.
type requestCounter struct{ *prometheus.CounterVec }

// Increment implements clientmetrics.ResultMetric.
func (c requestCounter) Increment(_ context.Context, code, method, host string) {
	c.WithLabelValues(code, method, host).Inc()
}
