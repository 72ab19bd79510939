// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"errors"
	"syscall"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// errClosed is for calls after Close, which only a process that is stopping makes.
var errClosed = errors.New("the connection was closed by this program")

// errUnanswered refuses a call because too many earlier ones still wait for an OSD that
// does not answer. It is an ErrTimeout with a known outcome: nothing was begun.
var errUnanswered error = unanswered{}

type unanswered struct{}

func (unanswered) Error() string { return "earlier calls to the pool have had no answer yet" }
func (unanswered) Unwrap() error { return rbd.ErrTimeout }

// translate turns an error of librados or librbd into one of package rbd. notFound is the
// error for ENOENT, which depends on what the call asked for. A number on which no caller
// decides keeps the system's text, without the number.
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
	case syscall.EMLINK, syscall.EROFS:
		return rbd.ErrImageHeld
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

// translateConnect is translate for making a connection, where some numbers have another
// meaning.
func translateConnect(err error) error {
	number, _ := errno(err)
	switch number {
	case syscall.ETIMEDOUT:
		return rbd.ErrUnreachable
	case syscall.EINVAL:
		// It is the key: check has passed the only other argument that librados refuses.
		return rbd.ErrInvalidKey
	}
	// Connecting asks for nothing by name, so nothing can be missing.
	return translate(err, syscall.ENOENT)
}

// errno returns the error number of a go-ceph error, and false if it has none.
func errno(err error) (syscall.Errno, bool) {
	var coded interface{ ErrorCode() int }
	if !errors.As(err, &coded) {
		return 0, false
	}
	return syscall.Errno(max(coded.ErrorCode(), -coded.ErrorCode())), true
}

// ignore returns err, but nil for an error that means success.
func ignore(err, success error) error {
	if errors.Is(err, success) {
		return nil
	}
	return err
}

// interrupted is the error of a call whose context ended first. Its text is only the
// sentinel's: it must not depend on whether librados gave up or we did.
type interrupted struct {
	sentinel error // ErrTimeout or ErrUnreachable
	cause    error // the context's
}

func (e *interrupted) Error() string   { return e.sentinel.Error() }
func (e *interrupted) Unwrap() []error { return []error{e.sentinel, e.cause} }
