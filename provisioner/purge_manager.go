// SPDX-License-Identifier: Apache-2.0

package provisioner

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

// Who removes an image, in the log and in metrics.
const (
	ByManager     = "manager"
	ByProvisioner = "provisioner"
)

// leaveToManager reports whether an image is left to Ceph's manager, which goes on when
// this process ends, and takes none of its time. It is asked when it has not been, and
// the image is looked for again later.
func (p *Provisioner) leaveToManager(ctx context.Context, pool rbd.Pool, in *purgePlace, item *purgeItem) bool {
	now := time.Now()
	if item.ours.IsZero() && p.askManager(ctx, pool, in, item) {
		item.ours = now.Add(managerTime)
	}
	if !now.Before(item.ours) || now.Before(in.managerAfter) {
		return false
	}
	// Each look comes as long after the last one as that came after the request.
	age := now.Sub(item.ours.Add(-managerTime))
	p.purger.postpone(item, now.Add(min(max(age, managerLook), item.ours.Sub(now))))
	return true
}

// askManager has Ceph's manager remove an image, and reports whether that is on its list
// now. Asking again takes an image off the list that it has failed with.
func (p *Provisioner) askManager(ctx context.Context, pool rbd.Pool, in *purgePlace, item *purgeItem) bool {
	if time.Now().Before(in.managerAfter) {
		return false
	}
	asking, cancel := context.WithTimeout(ctx, managerWait)
	defer cancel()
	err := pool.HandOverTrashed(asking, item.removal.ID)
	switch {
	case err == nil:
		in.managerSaid = false
		item.by = ByManager
		return true
	case errors.Is(err, rbd.ErrManagerFailed):
		item.ours = time.Now()
	case errors.Is(err, rbd.ErrImageNotFound), errors.Is(err, lease.ErrNotLeading), ctx.Err() != nil:
		// The removal here shows the same.
	default:
		in.managerAfter = time.Now().Add(managerAgain)
		if !in.managerSaid {
			if errors.Is(err, rbd.ErrPermissionDenied) {
				err = fmt.Errorf("%w: the cap mgr 'profile rbd' allows it", err)
			}
			klog.FromContext(ctx).Info("Images are removed from the trash by this process, not by Ceph's manager", "reason", err)
			in.managerSaid = true
		}
	}
	return false
}
