// SPDX-License-Identifier: Apache-2.0

// Package goceph does what package rbd asks for with librados and librbd. It
// owns the connections to Ceph clusters, the deadlines of calls that librbd
// cannot cancel, and the translation of error numbers. It is the only package
// that imports go-ceph and the only one that needs cgo; it knows nothing of
// Kubernetes.
//
// librados.go and librbd.go make the calls, each blocking and each returning
// librados's own error. The other files need no cgo: connector.go, link.go and
// pool.go share connections and keep handles alive while they are used, call.go
// and names.go bound a call by its deadline and put calls that name the same
// image in a row, errors.go turns error numbers into the errors of package rbd.
package goceph
