// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

// #include <stdlib.h>
// #include <rados/librados.h>
import "C"

import (
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"github.com/ceph/go-ceph/rados"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// greet waits for the first answer that an OSD gives to this connection, whatever it is.
// From Ceph 18 on, OSDs refuse a user without caps for OSDs as it connects, and librados
// tries again for ever. A call would keep waiting, and hold the image's name, long after
// the user got caps; this one is taken back, which is harmless for one that only reads.
func (c *radosConn) greet(io *rados.IOContext, timeout time.Duration) error {
	if c.greeted.Load() {
		return nil
	}
	object := C.CString("rbd_directory")
	defer C.free(unsafe.Pointer(object))
	var done C.rados_completion_t
	C.rados_aio_create_completion2(nil, nil, &done) // it never fails
	defer C.rados_aio_release(done)
	if status := C.rados_aio_stat(C.rados_ioctx_t(io.Pointer()), object, done, nil, nil); status < 0 {
		return fmt.Errorf("ask an OSD: %w", syscall.Errno(-status))
	}
	taken := make(chan struct{})
	limit := time.AfterFunc(timeout, func() {
		defer close(taken)
		C.rados_aio_cancel(C.rados_ioctx_t(io.Pointer()), done) // harmless if it is answered by now
	})
	C.rados_aio_wait_for_complete(done)
	if !limit.Stop() {
		<-taken // which uses done
	}
	switch canceled := syscall.Errno(-C.rados_aio_get_return_value(done)) == syscall.ECANCELED; {
	case !canceled:
		c.greeted.Store(true)
		return nil
	case c.greeted.Load(): // by the OSD of another pool, meanwhile
		return rbd.ErrTimeout
	}
	return rbd.ErrNoOSD
}
