// SPDX-License-Identifier: Apache-2.0

// Package goceph implements package rbd with librados and librbd. It owns the connections to
// Ceph clusters, the deadlines of calls that librbd cannot cancel, and the translation of
// error numbers. It alone imports go-ceph and needs cgo; it knows nothing of Kubernetes.
//
// The files with the build tag cgo, librados.go and librbd.go first, make the calls; each
// call blocks and returns librados's own error. The other files need no cgo:
// connector.go, link.go and pool.go share connections and keep handles alive while they
// are used; call.go, through which each call to a pool goes, bounds it by its deadline;
// names.go runs calls that name the same image one after the other; errors.go turns error
// numbers into the errors of package rbd.
package goceph
