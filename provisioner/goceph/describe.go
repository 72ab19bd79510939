// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

// #include <stdlib.h>
// #include "watchers.h"
import "C"

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/ceph/go-ceph/rados"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// errNotPlain says that an image, if it is one, is none of those that are
// described without librbd.
var errNotPlain = errors.New("not a plain image")

// image describes a plain image in three round trips: its id, its header, and who
// watches that. librbd would open it, which copies all options of the client: ten
// times the CPU. Whatever else there is, librbd says.
//
// Who watches is asked last, and of the OSD, by the same operation that librbd uses
// (list_image_watchers in Ceph's src/librbd/image/ListWatchersRequest.cc).
func (p *radosPool) image(name string) (rbd.Image, error) {
	image, err := p.plainImage(name)
	if errors.Is(err, errNotPlain) || errors.Is(err, rados.ErrNotFound) {
		return p.imageOpen(name)
	}
	return image, err
}

func (p *radosPool) plainImage(name string) (rbd.Image, error) {
	id, err := p.imageID(name)
	if err != nil {
		return rbd.Image{}, err
	}
	h, err := p.plainHeader(id)
	if err != nil {
		return rbd.Image{}, err
	}
	image := rbd.Image{ID: id, SizeBytes: h.sizeBytes, Features: []string{rbd.FeatureLayering}, Metadata: h.metadata}
	if h.hasDataPool {
		image.Features = []string{rbd.FeatureDataPool, rbd.FeatureLayering}
		if image.DataPool, err = p.conn.GetPoolByID(h.dataPool); err != nil {
			return rbd.Image{}, err
		}
	}
	image.Watchers, err = p.watchers(headerObject + id)
	return image, err
}

// plainHeader reads the header of a plain image, or returns errNotPlain.
func (p *radosPool) plainHeader(id string) (header, error) {
	op := rados.CreateReadOp()
	defer op.Release()
	values := op.GetOmapValues("", "", headerKeys)
	if err := op.Operate(p.io, headerObject+id, rados.OperationNoFlag); err != nil {
		return header{}, err
	}
	omap := map[string][]byte{}
	for {
		entry, err := values.Next()
		if err != nil {
			return header{}, err
		}
		if entry == nil {
			break
		}
		omap[entry.Key] = entry.Value
	}
	// An OSD may be told to give less at once than it is asked for.
	h, ok := parseHeader(omap)
	if !ok || values.More() {
		return header{}, errNotPlain
	}
	return h, nil
}

// watchers returns the sorted addresses of those who watch an object.
func (p *radosPool) watchers(object string) ([]string, error) {
	cObject := C.CString(object)
	defer C.free(unsafe.Pointer(cObject))
	var lines *C.char
	r := C.watcher_addresses(C.rados_ioctx_t(p.io.Pointer()), cObject, &lines)
	defer C.free(unsafe.Pointer(lines))
	if r < 0 {
		return nil, fmt.Errorf("list watchers: %w", watchError(-r))
	}
	var addresses []string
	for line := range strings.Lines(C.GoString(lines)) {
		addresses = append(addresses, strings.TrimSuffix(line, "\n"))
	}
	slices.Sort(addresses)
	return addresses, nil
}

// watchError is an error number as those of go-ceph's errors are.
type watchError syscall.Errno

func (e watchError) Error() string  { return syscall.Errno(e).Error() }
func (e watchError) ErrorCode() int { return int(e) }
