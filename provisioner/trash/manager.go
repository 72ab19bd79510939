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
	// managerWait is how long a manager has to take an image on: some milliseconds
	// are common.
	managerWait = 10 * time.Second
	// managerAgain is how long one is left alone that did not, as none does without
	// the cap for it.
	managerAgain = 10 * time.Minute
	// managerLook is when an image is first looked for that a manager took on. The
	// time doubles with each look.
	managerLook = 4 * time.Second
	// managerTime is how long a manager has for an image: it removes some 20 TiB in
	// that time, or some thousand small images. What it has not removed by then, since
	// it works on others, has failed or is gone, is removed here. That both remove an
	// image at the same time is harmless.
	managerTime = 10 * time.Minute
)

// Who removes an image, in the log and for Config.Purged.
const (
	ByManager     = "manager"
	ByProvisioner = "provisioner"
)

// manager is what is known of the one that a pool's images are left to.
type manager struct {
	// alone is until when it is left alone, said says that the log has why.
	alone time.Time
	said  bool
}

// leaveToManager reports whether an image is left to Ceph's manager, which goes on when
// this process ends, and takes none of its time. It is asked when it has not been, and
// the image is looked for again later.
func (r removing) leaveToManager(ctx context.Context, one *item) bool {
	now := time.Now()
	if one.ours.IsZero() && r.askManager(ctx, one) {
		one.ours = now.Add(managerTime)
	}
	if !now.Before(one.ours) || now.Before(r.in.manager.alone) {
		return false
	}
	// Each look comes as long after the last one as that came after the request.
	age := now.Sub(one.ours.Add(-managerTime))
	r.postpone(one, min(max(age, managerLook), one.ours.Sub(now)))
	return true
}

// askManager has Ceph's manager remove an image, and reports whether that is on its list
// now. Asking again takes an image off the list that it has failed with.
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
