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
	// common.
	managerWait = 10 * time.Second
	// managerAgain is how long we leave alone a manager that did not accept one; without
	// the cap for it, none does.
	managerAgain = 10 * time.Minute
	// managerLook is when we first look for an image that a manager accepted. The time
	// doubles with each look.
	managerLook = 4 * time.Second
	// managerTime is how long a manager has for an image: in that time it removes some
	// 20 TiB, or some thousand small images. This process removes what is left by then,
	// since the manager works on others, has failed or is gone. If both remove an image
	// at the same time, that is harmless.
	managerTime = 10 * time.Minute
)

// ByManager and ByProvisioner name the remover of an image, in the log and for
// Config.Purged.
const (
	ByManager     = "manager"
	ByProvisioner = "provisioner"
)

// manager is what we know of the one to which we leave a pool's images.
type manager struct {
	// alone is until when we leave it alone; said means that the log has the reason.
	alone time.Time
	said  bool
}

// leaveToManager reports whether to leave an image to Ceph's manager, which goes on
// when this process ends, and takes none of its time. It asks a manager that was not
// asked yet, and postpones the image.
func (r removing) leaveToManager(ctx context.Context, one *item) bool {
	now := time.Now()
	if one.ours.IsZero() && r.askManager(ctx, one) {
		one.ours = now.Add(managerTime)
	}
	if !now.Before(one.ours) || now.Before(r.in.manager.alone) {
		return false
	}
	// Each look doubles the time since the request.
	age := now.Sub(one.ours.Add(-managerTime))
	r.postpone(one, min(max(age, managerLook), one.ours.Sub(now)))
	return true
}

// askManager asks Ceph's manager to remove an image, and reports whether the manager's
// list now has it. If the manager has failed with the image, asking again takes it off
// the list.
func (r removing) askManager(ctx context.Context, one *item) bool {
	m := &r.in.manager
	if time.Now().Before(m.alone) {
		return false
	}
	asking, cancel := context.WithTimeout(ctx, managerWait)
	defer cancel()
	err := r.open.HandOverTrashed(asking, one.removal.ID)
	switch {
	case err == nil:
		one.by, m.said = ByManager, false
		return true
	case errors.Is(err, rbd.ErrManagerFailed):
		one.ours = time.Now()
		return false
	case errors.Is(err, rbd.ErrImageNotFound), errors.Is(err, lease.ErrNotLeading), ctx.Err() != nil:
		return false // the removal here shows the same
	case errors.Is(err, rbd.ErrPermissionDenied):
		err = fmt.Errorf("%w: the cap mgr 'profile rbd' allows it", err)
	}
	m.alone = time.Now().Add(managerAgain)
	if !m.said {
		klog.FromContext(ctx).Info("Images are removed from the trash by this process, not by Ceph's manager", "reason", err)
		m.said = true
	}
	return false
}
