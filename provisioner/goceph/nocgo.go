// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package goceph

import "errors"

// New returns an error: this program was built without cgo, and librados is a C library.
func New(Config) (*Connector, error) {
	return nil, errors.New("this program was built without cgo and cannot reach Ceph; build it with \"make build\"")
}

// Version returns "none": there is no librados in this program.
func Version() string { return "none" }
