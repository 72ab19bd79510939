// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"slices"
	"strings"
)

// PoolID says which pool it is, whoever opens it and by which monitors. It is the key
// of whatever is kept by pool.
type PoolID struct {
	// FSID is the identity of the Ceph cluster, a UUID.
	FSID string
	Pool string
}

// Image returns the key of an image of the pool.
func (p PoolID) Image(name string) ImageID { return ImageID{p, name} }

// ImageID says which image it is.
type ImageID struct {
	PoolID
	Name string
}

// Route is a Location as a key: two that are equal lead to the same pool, in the same
// way. Two that differ may do so, too; which pool it is, only Ceph tells.
type Route struct {
	monitors, pool, dataPool, user string
	secret                         SecretRef
}

// Route returns the location's key. The order of monitors does not matter.
func (l Location) Route() Route {
	monitors := make([]string, len(l.Monitors))
	for i, m := range l.Monitors {
		monitors[i] = m.String()
	}
	slices.Sort(monitors)
	return Route{strings.Join(monitors, ","), l.Pool, l.DataPool, l.User, l.Secret}
}

// Monitors returns the monitors, sorted, as one text: the key of whatever is kept by
// cluster before Ceph has told which one it is.
func (r Route) Monitors() string { return r.monitors }
