// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"k8s.io/client-go/tools/leaderelection"
	clientmetrics "k8s.io/client-go/tools/metrics"
	libmetrics "sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller/metrics"

	"ceph.com/rbd-provisioner/provisioner/goceph"
	"ceph.com/rbd-provisioner/provisioner/orphan"
	"ceph.com/rbd-provisioner/provisioner/trash"
)

// newRegistry returns our own registry: we make no promise about other metrics in the
// default one.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	auto := promauto.With(registry)
	auto.NewGauge(prometheus.GaugeOpts{
		Name:        "rbd_provisioner_build_info",
		Help:        "Versions of this program and its libraries; always 1.",
		ConstLabels: prometheus.Labels{"version": version, "librados": goceph.Version(), "goversion": runtime.Version()},
	}).Set(1)
	leaderelection.SetProvider(leaderGauge{auto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "leader_election_master_status",
		Help: "1 while this replica holds the lease of the name, otherwise 0.",
	}, []string{"name"})})
	clientmetrics.Register(clientmetrics.RegisterOpts{RequestResult: requestCounter{auto.NewCounterVec(prometheus.CounterOpts{
		Name: "rest_client_requests_total",
		Help: "Number of HTTP requests, partitioned by status code, method, and host.",
	}, []string{"code", "method", "host"})}})
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// clusterCollector shows the versions of Ceph that it returns, by FSID.
type clusterCollector func() map[string]string

var clusterInfo = prometheus.NewDesc("rbd_provisioner_ceph_cluster_info",
	"Versions of the Ceph clusters that this process has connected to, as a monitor told it, or unknown; always 1.",
	[]string{"fsid", "version"}, nil)

func (c clusterCollector) Describe(descs chan<- *prometheus.Desc) { descs <- clusterInfo }

func (c clusterCollector) Collect(metrics chan<- prometheus.Metric) {
	for fsid, version := range c() {
		metrics <- prometheus.MustNewConstMetric(clusterInfo, prometheus.GaugeValue, 1, fsid, version)
	}
}

// leaderGauge shows who leads, under the name that the components of Kubernetes give
// it. client-go sets it.
type leaderGauge struct{ *prometheus.GaugeVec }

func (g leaderGauge) NewLeaderMetric() leaderelection.LeaderMetric { return g }
func (g leaderGauge) On(name string)                               { g.WithLabelValues(name).Set(1) }
func (g leaderGauge) Off(name string)                              { g.WithLabelValues(name).Set(0) }

// SlowpathExercised ignores renewals that had to read the lease first.
func (g leaderGauge) SlowpathExercised(string) {}

// requestCounter counts requests to the API server in the same way. The adapter in
// component-base keeps to its own registry.
type requestCounter struct{ *prometheus.CounterVec }

func (c requestCounter) Increment(_ context.Context, code, method, host string) {
	c.WithLabelValues(code, method, host).Inc()
}

// newCounter counts by the values of one label, which are shown from the start, as 0.
func newCounter[V ~string](registry prometheus.Registerer, name, help, label string, values ...V) func(V) {
	counter := promauto.With(registry).NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	for _, value := range values {
		counter.WithLabelValues(string(value))
	}
	return func(value V) { counter.WithLabelValues(string(value)).Inc() }
}

// newCephObserver shows how long calls to Ceph take: from a millisecond, as for a note, to a
// minute, as for an image that is removed.
func newCephObserver(registry prometheus.Registerer) func(call string, d time.Duration, err error) {
	durations := promauto.With(registry).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "rbd_provisioner_ceph_call_duration_seconds",
		Help:    "Time that calls to Ceph took, by call and result: success or failure, which includes that there is no such image.",
		Buckets: prometheus.ExponentialBuckets(0.001, 4, 9),
	}, []string{"call", "result"})
	return func(call string, d time.Duration, err error) {
		durations.WithLabelValues(call, resultOf(err)).Observe(d.Seconds())
	}
}

func resultOf(err error) string {
	if err != nil {
		return "failure"
	}
	return "success"
}

func newRecoveredCounter(registry prometheus.Registerer) func(orphan.Outcome) {
	return newCounter(registry, "rbd_provisioner_recovered_images_total",
		"Images without a volume that interrupted attempts left: removed, foreign (another owner's or with data, so left alone) or kept (in use or out of reach: will retry).",
		"outcome", orphan.OutcomeRemoved, orphan.OutcomeForeign, orphan.OutcomeKept)
}

func newPurgedCounter(registry prometheus.Registerer) func(by string) {
	return newCounter(registry, "rbd_provisioner_purged_images_total",
		"Images of deleted volumes that were removed from the trash, by Ceph's manager or by this process (provisioner).",
		"by", trash.ByManager, trash.ByProvisioner)
}

func newResizedCounter(registry prometheus.Registerer) func(error) {
	count := newCounter(registry, "rbd_provisioner_expansions_total",
		"Attempts to give the image of a volume the size that its claim asks for, by result: success or failure (will retry).",
		"result", "success", "failure")
	return func(err error) { count(resultOf(err)) }
}

func newFlattenedCounter(registry prometheus.Registerer) func() {
	return promauto.With(registry).NewCounter(prometheus.CounterOpts{
		Name: "rbd_provisioner_flattened_clones_total",
		Help: "Clones that were flattened, so that they depend on no other image.",
	}).Inc
}

// registerTrash shows what the trash counts, which only the leader knows: others show 0.
func registerTrash(registry prometheus.Registerer, count func() (waiting, kept int)) {
	gauge := func(state string, value func() int) {
		promauto.With(registry).NewGaugeFunc(prometheus.GaugeOpts{
			Name: "rbd_provisioner_trash_images",
			Help: "Images of deleted volumes in the trash of their pools that the leader knows of: " +
				"waiting (to be removed now) or kept (until their class's trashRetention has passed).",
			ConstLabels: prometheus.Labels{"state": state},
		}, func() float64 { return float64(value()) })
	}
	gauge("waiting", func() int { waiting, _ := count(); return waiting })
	gauge("kept", func() int { _, kept := count(); return kept })
}

// registerClones shows how many clones are still to be flattened, as registerTrash does.
func registerClones(registry prometheus.Registerer, count func() int) {
	promauto.With(registry).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "rbd_provisioner_unflattened_clones",
		Help: "Clones that the leader is to flatten before their claims get them, since they depend on more images than -max-clone-depth allows, or their source has many clones.",
	}, func() float64 { return float64(count()) })
}

// newLibraryMetrics returns the library's metrics. Their names begin with "controller".
func newLibraryMetrics(registry prometheus.Registerer) libmetrics.Metrics {
	m := libmetrics.New("controller")
	registry.MustRegister(
		m.PersistentVolumeClaimProvisionTotal,
		m.PersistentVolumeClaimProvisionFailedTotal,
		m.PersistentVolumeClaimProvisionDurationSeconds,
		m.PersistentVolumeDeleteTotal,
		m.PersistentVolumeDeleteFailedTotal,
		m.PersistentVolumeDeleteDurationSeconds,
	)
	return m
}
