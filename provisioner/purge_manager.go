// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

const (
	// managerWidth is how many images of a pool Ceph's manager has on its list at a
	// time. It has one for all pools, works it off one by one, and does not look
	// again whether an image is the one that was noted.
	managerWidth = 32
	// managerWait is how long a manager has to take an image on: some milliseconds
	// are common.
	managerWait = 10 * time.Second
	// managerAgain is how long one is not asked that did not, as none does without
	// the cap for it.
	managerAgain = 10 * time.Minute
	// managerLook is when an image is looked at first that a manager took on; the
	// time doubles up to managerLookCap.
	managerLook    = 4 * time.Second
	managerLookCap = time.Minute
	// managerPace is in which time a full list must become shorter; else images are
	// removed here, too. Large ones take long.
	managerPace = 2 * time.Minute
	// managerPatience is how long a manager has for one image; then it is removed
	// here.
	managerPatience = time.Hour
)

// Who removes an image, in the log and in metrics.
const (
	ByManager     = "manager"
	ByProvisioner = "provisioner"
)

// managerPlace is what is known of Ceph's manager in a pool.
type managerPlace struct {
	// again is before when it is not asked; said says that the log has why not.
	again time.Time
	said  bool
	// listed is how many images are on its list, progress when the list was empty
	// or became shorter.
	listed   int
	progress time.Time
}

// waits reports whether an image is to wait until the manager's list has room.
func (m *managerPlace) waits(item *purgeItem, now time.Time) bool {
	return m.full(item) && !item.alone && !now.Before(m.again) && now.Sub(m.progress) < managerPace
}

// wait reports whether all images are to.
func (m *managerPlace) wait(items []*purgeItem, now time.Time) bool {
	return !slices.ContainsFunc(items, func(item *purgeItem) bool { return !m.waits(item, now) })
}

func (m *managerPlace) full(item *purgeItem) bool {
	return item.listed.IsZero() && m.listed >= managerWidth
}

func (m *managerPlace) list(item *purgeItem, now time.Time) {
	if !item.listed.IsZero() {
		return
	}
	if m.listed == 0 {
		m.progress = now
	}
	m.listed++
	item.listed, item.backoff = now, 0
}

func (m *managerPlace) unlist(item *purgeItem, now time.Time) {
	if !item.listed.IsZero() {
		m.listed--
		m.progress = now
		item.listed = time.Time{}
	}
}

// handOver leaves an image to Ceph's manager, and reports whether that has taken it
// on: it goes on when this process ends, and takes none of its time. An image that
// was left to it before and is still there is asked for again, which shows whether
// the manager is alive, still knows of it, or has failed.
func (p *Provisioner) handOver(ctx context.Context, pool rbd.Pool, in *purgePlace, item *purgeItem) bool {
	m, now := &in.manager, time.Now()
	if now.Before(m.again) || item.alone || m.full(item) {
		return false
	}
	if !item.listed.IsZero() && now.Sub(item.listed) > managerPatience {
		m.unlist(item, now)
		item.alone = true
		return false
	}
	asking, cancel := context.WithTimeout(ctx, managerWait)
	defer cancel()
	err := pool.HandOverTrashed(asking, item.removal.ID)
	switch {
	case err == nil:
		m.said = false
		m.list(item, now)
		item.by = ByManager
		item.backoff = min(max(2*item.backoff, managerLook), managerLookCap)
		// At the same times as others: each time, the pool is opened.
		p.purger.postpone(item, time.Now().Add(item.backoff).Truncate(managerLook).Add(managerLook))
		return true
	case errors.Is(err, rbd.ErrManagerFailed):
		m.unlist(item, now)
		item.alone, item.backoff = true, 0
	case errors.Is(err, rbd.ErrImageNotFound), errors.Is(err, errNotLeading), ctx.Err() != nil:
		// The removal here shows the same.
	default:
		m.again = time.Now().Add(managerAgain)
		if !m.said {
			if errors.Is(err, rbd.ErrPermissionDenied) {
				err = fmt.Errorf("%w: the cap mgr 'profile rbd' allows it", err)
			}
			klog.FromContext(ctx).Info("Images are removed from the trash by this process, not by Ceph's manager", "reason", err)
			m.said = true
		}
	}
	return false
}
