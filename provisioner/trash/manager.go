// SPDX-License-Identifier: Apache-2.0

package trash

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

const (
	// managerWait is how long a manager has to accept an image: some milliseconds are
	// common. One that does not, as without the cap, is left alone for managerAgain.
	managerWait  = 10 * time.Second
	managerAgain = 10 * time.Minute
	// managerLook is when we first look for an accepted image; each look doubles the time.
	managerLook = 4 * time.Second
	// managerTime is how long a manager has for an image: in that time it removes some hundred
	// images of 64 GiB, the largest that it is asked for, or a thousand small ones. This
	// process removes what is left by then: the manager works on others, has failed or is
	// gone. If both do, that is harmless.
	managerTime = 10 * time.Minute
)

// ByManager and ByProvisioner name the remover of an image.
const (
	ByManager     = "manager"
	ByProvisioner = "provisioner"
)

// leaveToManager reports whether to leave an image to Ceph's manager, which takes none of
// our time. It asks a manager that was not asked yet, and postpones the image.
func (r removing) leaveToManager(ctx context.Context, one *item) bool {
	if one.oursFrom.IsZero() && r.askManager(ctx, one) {
		one.oursFrom = time.Now().Add(managerTime)
	}
	left := time.Until(one.oursFrom)
	if left <= 0 || time.Now().Before(r.in.askAfter) {
		return false
	}
	// Each look doubles the time since the request.
	one.postpone(min(max(managerTime-left, managerLook), left))
	return true
}

// askManager asks Ceph's manager to remove an image, and reports whether the manager's
// list now has it. If the manager has failed with it, asking again takes it off the list.
func (r removing) askManager(ctx context.Context, one *item) bool {
	if time.Now().Before(r.in.askAfter) {
		return false
	}
	asking, cancel := context.WithTimeout(ctx, managerWait)
	defer cancel()
	err := r.open.HandOverTrashed(asking, one.removal.ID)
	switch {
	case err == nil:
		one.remover, r.in.denied = ByManager, false
		return true
	case errors.Is(err, rbd.ErrManagerFailed):
		one.oursFrom = time.Now()
		return false
	case errors.Is(err, rbd.ErrImageNotFound), errors.Is(err, lease.ErrNotLeading), ctx.Err() != nil:
		return false // the removal here shows the same
	case errors.Is(err, rbd.ErrPermissionDenied):
		err = fmt.Errorf("%w: the cap mgr 'profile rbd' allows it", err)
	}
	r.in.askAfter = time.Now().Add(managerAgain)
	if !r.in.denied {
		klog.FromContext(ctx).Info("Images are removed from the trash by this process, not by Ceph's manager", "reason", err)
		r.in.denied = true
	}
	return false
}
