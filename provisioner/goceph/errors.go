// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"errors"
	"syscall"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// errClosed is what calls return after Close. It is no error of package rbd:
// only a process that is stopping sees it.
var errClosed = errors.New("the connection was closed by this program")

// errUnanswered is what calls return that would follow too many earlier ones to an OSD
// that does not answer. It is an ErrTimeout whose outcome is known: nothing was begun.
var errUnanswered error = unanswered{}

type unanswered struct{}

func (unanswered) Error() string { return "earlier calls to the pool have had no answer yet" }
func (unanswered) Unwrap() error { return rbd.ErrTimeout }

// translate turns an error of librados or librbd into one of package rbd.
// notFound is what ENOENT means for the thing that was asked for. The text of an
// error number that callers do not decide on is the system's, without the
// number.
func translate(err, notFound error) error {
	number, ok := errno(err)
	if !ok {
		return err
	}
	switch number {
	case syscall.EPERM, syscall.EACCES:
		return rbd.ErrPermissionDenied
	case syscall.ENOENT:
		return notFound
	case syscall.EEXIST:
		return rbd.ErrImageExists
	case syscall.EBUSY:
		return rbd.ErrImageInUse
	case syscall.ENOTEMPTY:
		return rbd.ErrImageHasSnapshots
	case syscall.ETIMEDOUT:
		return rbd.ErrTimeout
	case syscall.ENOSPC, syscall.EDQUOT:
		return rbd.ErrPoolFull
	case syscall.ESHUTDOWN, syscall.ENOTCONN: // ESHUTDOWN is Ceph's EBLOCKLISTED
		return rbd.ErrConnectionLost
	case syscall.EINVAL, syscall.EOPNOTSUPP, syscall.ENOSYS:
		return rbd.ErrNotSupported
	}
	return number
}

// translateConnect is translate for making a connection, where some numbers
// mean something else.
func translateConnect(err error) error {
	number, _ := errno(err)
	switch number {
	case syscall.ETIMEDOUT:
		return rbd.ErrUnreachable
	case syscall.EINVAL:
		// The other argument that librados could refuse, the monitors, was
		// checked before.
		return rbd.ErrInvalidKey
	}
	// Nothing is asked for by a name that could be missing.
	return translate(err, syscall.ENOENT)
}

// errno returns the error number of an error of go-ceph, and false when it has
// none.
func errno(err error) (syscall.Errno, bool) {
	var coded interface{ ErrorCode() int }
	if !errors.As(err, &coded) {
		return 0, false
	}
	return syscall.Errno(max(coded.ErrorCode(), -coded.ErrorCode())), true
}

// interrupted is the error of a call that did not end before its context. Its
// text is that of the sentinel alone: it must not differ between an attempt
// that librados gave up and one that we did.
type interrupted struct {
	sentinel error // ErrTimeout or ErrUnreachable
	cause    error // of the context
}

func (e *interrupted) Error() string   { return e.sentinel.Error() }
func (e *interrupted) Unwrap() []error { return []error{e.sentinel, e.cause} }
