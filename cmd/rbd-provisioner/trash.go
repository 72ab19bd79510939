// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"ceph.com/rbd-provisioner/provisioner"
)

// registerTrash shows how many images of deleted volumes are in the trash. Only
// the leader knows; others show 0.
func registerTrash(registry prometheus.Registerer, count func() (waiting, kept int)) {
	gauge := func(state string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "rbd_provisioner_trash_images",
			Help: "Images of deleted volumes in the trash of their pools that the leader knows of: " +
				"waiting (to be removed now) or kept (until their class's trashRetention has passed).",
			ConstLabels: prometheus.Labels{"state": state},
		}, func() float64 { return float64(value()) })
	}
	registry.MustRegister(
		gauge("waiting", func() int { waiting, _ := count(); return waiting }),
		gauge("kept", func() int { _, kept := count(); return kept }),
	)
}

// newPurgedCounter counts the images that were removed from the trash.
func newPurgedCounter(registry prometheus.Registerer) func(by string) {
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rbd_provisioner_purged_images_total",
		Help: "Images of deleted volumes that were removed from the trash, by Ceph's manager or by this process (provisioner).",
	}, []string{"by"})
	for _, by := range []string{provisioner.ByManager, provisioner.ByProvisioner} {
		counter.WithLabelValues(by) // shown from the beginning, as 0
	}
	registry.MustRegister(counter)
	return func(by string) { counter.WithLabelValues(by).Inc() }
}
