// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"slices"
	"strings"
)

// PoolID identifies a pool, whatever user and monitors open it.
type PoolID struct {
	FSID string // the Ceph cluster's identity, a UUID
	Pool string
}

// Image returns the key of an image of the pool.
func (p PoolID) Image(name string) ImageID { return ImageID{p, name} }

// ImageID identifies an image.
type ImageID struct {
	PoolID
	Name string
}

// Route is a Location as a key. Different routes may lead to the same pool: only Ceph
// tells which pool it is.
type Route struct {
	// Monitors are sorted. They stand for a cluster before Ceph has told its FSID.
	Monitors             string
	pool, dataPool, user string
	secret               SecretRef
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
