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
	// managerLook is when we first look for an accepted image.
	managerLook = 4 * time.Second
	// managerTime is how long a manager has for an image: in that time it removes some hundred
	// images of 64 GiB, the largest that it is asked for, or a thousand small ones. This
	// process removes what is left by then: the manager works on others, has failed or is
	// gone. If both do, that is harmless.
	managerTime = 10 * time.Minute
	// managerStall is how long a manager may have images without one of them going: the
	// largest takes 1 to 3 s. Debian 13's dies within 10 s of accepting one, having removed
	// none. It then begins with the same ones each time it is started, and systemd does so
	// three times: so they are removed here soon, and it gets no others for managerPause.
	managerStall = 30 * time.Second
	managerPause = 24 * time.Hour
)

// ByManager and ByProvisioner name the remover of an image.
const (
	ByManager     = "manager"
	ByProvisioner = "provisioner"
)

// manager is what is known of the manager of a cluster. The monitors don't tell users with
// our caps which one is active. Queue.mu guards it.
type manager struct {
	// owes is since when it has had images without one of them going; zero for none.
	owes time.Time
	// heard is when it last answered as it should.
	heard time.Time
	// askAfter is the earliest time at which it is asked again; told means that the log has
	// the reason, and that it has removed nothing since.
	askAfter time.Time
	told     bool
}

// leaveToManager reports whether to leave an image to Ceph's manager, which takes none of
// our time. It asks a manager that was not asked yet, and postpones the image.
func (r removing) leaveToManager(ctx context.Context, one *item) bool {
	switch {
	case !one.oursFrom.IsZero():
		if time.Until(one.oursFrom) <= 0 || !r.managerWorks(ctx, one) {
			return false
		}
	case r.askManager(ctx, one):
		one.oursFrom = time.Now().Add(managerTime)
	default:
		return false
	}
	left := time.Until(one.oursFrom)
	// Each look doubles the time since the request, but what went must be seen before
	// managerStall is over.
	one.postpone(min(max(managerTime-left, managerLook), managerStall/2, left))
	return true
}

// managerWorks reports whether an image that the manager accepted, and that is still there,
// may be left to it. A manager from which nothing was heard since is asked again: no answer
// shows that it died or hangs.
func (r removing) managerWorks(ctx context.Context, one *item) bool {
	r.mu.Lock()
	m := *r.in.manager
	r.mu.Unlock()
	if !m.owes.IsZero() && time.Since(m.owes) >= managerStall {
		r.giveUpManager(ctx, errors.New("it answers, but none has gone for half a minute"))
	}
	if r.managerPaused() {
		return false
	}
	return time.Since(m.heard) < managerLook || r.askManager(ctx, one)
}

// managerPaused reports whether the manager is left alone for now.
func (r removing) managerPaused() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	return now.Before(r.in.askAfter) || now.Before(r.in.manager.askAfter)
}

// askManager asks Ceph's manager to remove an image, and reports whether the manager's
// list now has it. If the manager has failed with it, asking again takes it off the list.
func (r removing) askManager(ctx context.Context, one *item) bool {
	if r.managerPaused() {
		return false
	}
	asking, cancel := context.WithTimeout(ctx, managerWait)
	defer cancel()
	err := r.open.HandOverTrashed(asking, one.removal.ID)
	switch {
	case err == nil:
		one.remover, r.in.denied = ByManager, false
		r.heardManager(true)
		return true
	case errors.Is(err, rbd.ErrManagerFailed):
		one.remover, one.oursFrom = "", time.Now()
		r.heardManager(false)
		return false
	case errors.Is(err, rbd.ErrImageNotFound), errors.Is(err, lease.ErrNotLeading), ctx.Err() != nil:
		return false // the removal here shows the same
	case errors.Is(err, rbd.ErrPermissionDenied):
		err = fmt.Errorf("%w: the cap mgr 'profile rbd' allows it", err)
	case r.giveUpManager(ctx, err):
		return false
	}
	r.in.askAfter = time.Now().Add(managerAgain)
	if !r.in.denied {
		klog.FromContext(ctx).Info("Images are removed from the trash by this process, not by Ceph's manager", "reason", err)
		r.in.denied = true
	}
	return false
}

// heardManager notes that the manager answered, and whether it now has images to remove.
func (r removing) heardManager(owes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.in.manager
	m.heard = time.Now()
	if !owes {
		m.owes = time.Time{}
	} else if m.owes.IsZero() {
		m.owes = m.heard
	}
}

// giveUpManager leaves the manager alone for long if it has images that it does not remove,
// and reports that. The log says so once, until it has removed an image.
func (r removing) giveUpManager(ctx context.Context, reason error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.in.manager
	if m.owes.IsZero() {
		return false
	}
	m.owes, m.askAfter = time.Time{}, time.Now().Add(managerPause)
	if !m.told {
		klog.FromContext(ctx).Info("Ceph's manager does not remove the images that it accepted: it gets no others for a day, and they are removed here",
			"reason", reason, "remedy", "if it dies, leave out the cap mgr of this user; if it is busy, see: ceph rbd task list", "user", r.open.Location.User)
		m.told = true
	}
	return true
}

// managerRemoved notes that the manager has removed an image that it accepted.
func (r removing) managerRemoved() {
	r.heardManager(false)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.in.manager.told = false
}
