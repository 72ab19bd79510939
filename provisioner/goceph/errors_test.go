// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// cephError is like an error of go-ceph: a negative error number, and a text that shows it.
type cephError int

func (e cephError) Error() string  { return fmt.Sprintf("rbd: ret=%d, some words", int(e)) }
func (e cephError) ErrorCode() int { return int(e) }

func TestTranslate(t *testing.T) {
	plain := errors.New("go-ceph's own")
	for _, tc := range []struct {
		name          string
		err           error
		call, connect error // what it means for a call, and for connecting
	}{
		{"no error", nil, nil, nil},
		{"an error without a number stays", plain, plain, plain},
		{"not permitted", cephError(-1), rbd.ErrPermissionDenied, rbd.ErrPermissionDenied},
		{"access denied", cephError(-13), rbd.ErrPermissionDenied, rbd.ErrPermissionDenied},
		{"no such entry: the image", cephError(-2), rbd.ErrImageNotFound, syscall.ENOENT},
		{"go-ceph's wrapped ENOENT", fmt.Errorf("RBD image not found: %w", cephError(-2)), rbd.ErrImageNotFound, syscall.ENOENT},
		{"exists", cephError(-17), rbd.ErrImageExists, rbd.ErrImageExists},
		{"busy", cephError(-16), rbd.ErrImageInUse, rbd.ErrImageInUse},
		{"not empty", cephError(-39), rbd.ErrImageHasSnapshots, rbd.ErrImageHasSnapshots},
		{"timed out: a call may have taken effect, a connection not", cephError(-110), rbd.ErrTimeout, rbd.ErrUnreachable},
		{"no space", cephError(-28), rbd.ErrPoolFull, rbd.ErrPoolFull},
		{"over quota", cephError(-122), rbd.ErrPoolFull, rbd.ErrPoolFull},
		{"blocklisted", cephError(-108), rbd.ErrConnectionLost, rbd.ErrConnectionLost},
		{"not connected", cephError(-107), rbd.ErrConnectionLost, rbd.ErrConnectionLost},
		{"invalid: an argument, or the key", cephError(-22), rbd.ErrNotSupported, rbd.ErrInvalidKey},
		{"operation not supported", cephError(-95), rbd.ErrNotSupported, rbd.ErrNotSupported},
		{"function not implemented", cephError(-38), rbd.ErrNotSupported, rbd.ErrNotSupported},
		{"a positive number", cephError(16), rbd.ErrImageInUse, rbd.ErrImageInUse},
		{"a number that nobody decides on", cephError(-5), syscall.EIO, syscall.EIO},
		{"read-only: a mirrored image that is not the primary", cephError(-30), rbd.ErrImageHeld, rbd.ErrImageHeld},
		{"too many links: an image in a group", cephError(-31), rbd.ErrImageHeld, rbd.ErrImageHeld},
		{"an error that is translated already", rbd.ErrPoolNotFound, rbd.ErrPoolNotFound, rbd.ErrPoolNotFound},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, c := range []struct{ got, want error }{
				{translate(tc.err, rbd.ErrImageNotFound), tc.call},
				{translateConnect(tc.err), tc.connect},
			} {
				if !errors.Is(c.got, c.want) {
					t.Errorf("got %v, want %v", c.got, c.want)
				}
				if c.got != nil && strings.ContainsAny(c.got.Error(), "0123456789=") {
					t.Errorf("the text shows a number: %q", c.got)
				}
			}
		})
	}
	if got := translate(cephError(-2), rbd.ErrPoolNotFound); !errors.Is(got, rbd.ErrPoolNotFound) {
		t.Errorf("opening a pool: got %v, want ErrPoolNotFound", got)
	}
	if got, want := translate(cephError(-5), nil).Error(), "input/output error"; got != want {
		t.Errorf("got the text %q, want %q", got, want)
	}
}
