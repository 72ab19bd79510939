// SPDX-License-Identifier: Apache-2.0

package main

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

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
	registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		build,
	)
	return registry
}
