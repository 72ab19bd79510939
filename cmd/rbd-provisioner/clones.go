// SPDX-License-Identifier: Apache-2.0

package main

import "github.com/prometheus/client_golang/prometheus"

// registerClones shows how many clones are to be flattened. Only the leader knows;
// others show 0.
func registerClones(registry prometheus.Registerer, count func() int) {
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "rbd_provisioner_unflattened_clones",
		Help: "Clones that the leader is to flatten before their claims get them, since they depend on more images than -max-clone-depth allows, or their source has many clones.",
	}, func() float64 { return float64(count()) }))
}

// newFlattenedCounter counts the clones that were flattened.
func newFlattenedCounter(registry prometheus.Registerer) func() {
	counter := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "rbd_provisioner_flattened_clones_total",
		Help: "Clones that were flattened, so that they depend on no other image.",
	})
	registry.MustRegister(counter)
	return counter.Inc
}
