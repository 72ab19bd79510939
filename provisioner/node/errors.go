// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// kubelet makes events of our errors, with the volume's name in front. So each is one line
// that names what it is about, and says what to do.

// invalid is for what is wrong with a volume, and stays wrong until somebody changes it.
func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// refused is for what is not possible as things are.
func refused(format string, args ...any) error {
	return status.Errorf(codes.FailedPrecondition, format, args...)
}

// internal is for what only the error itself can explain.
func internal(attempt string, err error) error {
	return status.Errorf(codes.Internal, "%s: %s", attempt, oneLine(err))
}

// oneLine is for errors of mount-utils, which quote what commands print.
func oneLine(err error) string {
	var lines []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// explain turns an error of package rbd or krbd into one for people. Those of krbd say
// by themselves what to do.
func (v volumeRequest) explain(attempt string, err error) error {
	hint := ""
	caps := fmt.Sprintf(`"ceph auth get client.%s" must show mon "profile rbd" and osd "profile rbd pool=%s"`, v.user, v.pool)
	switch {
	case errors.Is(err, rbd.ErrPermissionDenied):
		hint = fmt.Sprintf(`the secret of the volume's nodeStageSecretRef must have what "ceph auth get-key client.%s" prints, and %s`, v.user, caps)
	case errors.Is(err, rbd.ErrKeyType):
		hint = fmt.Sprintf(`give client.%s a key of type aes, and store it in the secret of the volume's nodeStageSecretRef`, v.user)
	case errors.Is(err, rbd.ErrPoolNotFound), errors.Is(err, rbd.ErrImageNotFound):
		hint = fmt.Sprintf(`compare with "rbd ls %s"`, v.pool)
	case errors.Is(err, rbd.ErrNoOSD):
		hint = caps
	case errors.Is(err, rbd.ErrUnreachable), errors.Is(err, rbd.ErrTimeout), errors.Is(err, rbd.ErrConnectionLost):
		hint = `check with "ceph -s" that monitors have a quorum and OSDs are up, and that this node reaches their ports`
	}
	if hint != "" {
		hint = ": " + hint
	}
	return status.Errorf(codeOf(err), "%s: %s%s", attempt, oneLine(err), hint)
}

// codeOf returns CSI's code for an error of package rbd or krbd.
func codeOf(err error) codes.Code {
	for _, c := range []struct {
		code    codes.Code
		targets []error
	}{
		{codes.PermissionDenied, []error{rbd.ErrPermissionDenied, krbd.ErrDenied, krbd.ErrCaps}},
		{codes.NotFound, []error{rbd.ErrPoolNotFound, rbd.ErrImageNotFound, krbd.ErrNotFound}},
		{codes.FailedPrecondition, []error{rbd.ErrKeyType, rbd.ErrInvalidKey, krbd.ErrInvalid, krbd.ErrBusy, krbd.ErrNoDriver, krbd.ErrOtherCluster}},
		{codes.Unavailable, []error{rbd.ErrUnreachable, rbd.ErrTimeout, rbd.ErrConnectionLost, krbd.ErrUnreachable}},
		{codes.DeadlineExceeded, []error{context.DeadlineExceeded, context.Canceled}},
	} {
		for _, target := range c.targets {
			if errors.Is(err, target) {
				return c.code
			}
		}
	}
	return codes.Internal
}

// aboutDevices is for errors of package krbd where no user is known.
func aboutDevices(attempt string, err error) error {
	return status.Errorf(codeOf(err), "%s: %s", attempt, oneLine(err))
}

// isFinal reports whether kubelet takes an error as "nothing is left of it", and so never
// asks us to unstage. Source: isFinalError of its csi_client.go.
func isFinal(err error) bool {
	switch status.Code(err) {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	default:
		return true
	}
}
