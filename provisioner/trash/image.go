// SPDX-License-Identifier: Apache-2.0

package trash

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

const (
	// moveTime is the longest that a move to the trash may take. If an image got there
	// later, someone restored it and put it there again.
	moveTime = 10 * time.Minute
	// absentFor is how long an image must be absent before its note is cleared: a call
	// of a client that died, or of a process that was stopped and goes on, may still
	// reach an OSD.
	absentFor = time.Minute
)

// reasonImageInTrash is the reason of events on volumes.
const reasonImageInTrash = "ImageInTrash"

// errGoesOn says that librbd is still removing an image; the larger the image, the
// longer that takes.
var errGoesOn = errors.New("the removal goes on")

// removing removes a pool's images while the pool is open.
type removing struct {
	*Queue
	in   *pool
	open *access.Pool
}

// settle removes one image, leaves it to Ceph's manager, or postpones it. An error
// other than errGoesOn means that the pool's other images would fail, too.
func (r removing) settle(ctx context.Context, one *item) error {
	removal := one.removal
	logger := klog.FromContext(ctx).WithValues("image", removal.Image, "id", removal.ID, "PV", removal.Volume)
	ctx = klog.NewContext(ctx, logger)
	found, err := r.lookUp(ctx, one)
	switch {
	case err != nil:
		return err
	case found == nil && (one.by != "" || time.Since(one.absent) >= absentFor):
		return r.done(ctx, one)
	case found == nil:
		r.postpone(one, absentFor)
		return nil
	case found.Since.After(removal.At.Add(moveTime)) && r.isBeingDeleted(one):
		// The move took long; the deletion still runs, and will note that.
		r.postpone(one, r.retries.When(one))
		return nil
	case found.Name != removal.Image || found.Since.After(removal.At.Add(moveTime)):
		logger.Info("Left an image in the trash that somebody put there anew")
		one.by = ""
		return r.done(ctx, one)
	}
	if kept, err := r.keepRestored(ctx, one); err != nil || kept {
		return err
	}
	// Only RemoveTrashed completes a move that was cut off.
	if !found.Moving && r.leaveToManager(ctx, one) {
		return nil
	}
	return r.remove(ctx, one)
}

// lookUp looks for an image in the trash. It returns nil if the image is absent. If by
// is set then, the image was removed; otherwise someone has restored it, or a call that
// was cut off may still reach an OSD, so settle looks again.
func (r removing) lookUp(ctx context.Context, one *item) (*rbd.Trashed, error) {
	// Not in the middle of its deletion.
	defer r.lock(one)()
	if one.by == "" && !one.absent.IsZero() && time.Since(one.absent) >= absentFor {
		// The note is about to be cleared. A move by this process may still wait for an
		// OSD, however long; it holds the name until then, and this call waits for it.
		if _, err := r.open.Image(ctx, one.removal.Image); err != nil && !errors.Is(err, rbd.ErrImageNotFound) {
			return nil, err
		}
	}
	found, err := r.open.Trashed(ctx, one.removal.ID)
	if err == nil && found.Moving {
		if _, err = r.open.Image(ctx, one.removal.Image); errors.Is(err, rbd.ErrImageNotFound) {
			// No other image has the name: complete this one's move.
			err = r.open.TrashImage(ctx, one.removal.Image, one.removal.Keep)
		}
	}
	if err == nil {
		one.absent = time.Time{}
		return &found, nil
	}
	if !errors.Is(err, rbd.ErrImageNotFound) {
		return nil, err
	}
	if one.absent.IsZero() {
		one.absent = time.Now()
	}
	if one.by == "" {
		return nil, nil
	}
	restored, err := r.open.Image(ctx, one.removal.Image)
	if err == nil && restored.ID == one.removal.ID {
		one.by = "" // it was not removed
	}
	if errors.Is(err, rbd.ErrImageNotFound) {
		err = nil
	}
	return nil, err
}

// isBeingDeleted reports whether an image's volume still exists and is being deleted.
func (r removing) isBeingDeleted(one *item) bool {
	volumes, err := r.config.Volumes.Of(r.in.id.Image(one.removal.Image))
	return err == nil && slices.ContainsFunc(volumes, func(pv *corev1.PersistentVolume) bool {
		return pv.Name == one.removal.Volume && index.Goes(pv)
	})
}

func (r removing) lock(one *item) (unlock func()) {
	return r.config.Journal.Locks.Lock(r.in.id.Image(one.removal.Image))
}

// keepRestored reports whether a volume names the image again: someone has restored one
// from a backup, or made a second one. The image then stays in the trash, from where an
// administrator can bring it back.
func (r removing) keepRestored(ctx context.Context, one *item) (bool, error) {
	removal := one.removal
	pv, err := r.config.Volumes.Stays(r.in.id.Image(removal.Image))
	if err != nil || pv == nil {
		return false, err
	}
	r.postpone(one, r.retries.When(one))
	// Ceph's manager may still remove an image that it was asked to remove: promise
	// nothing.
	if !one.told && one.by != ByManager {
		klog.FromContext(ctx).Info("An image of a deleted volume stays in the trash, since another volume names it", "by", pv.Name)
		r.config.Events.Eventf(pv, corev1.EventTypeWarning, reasonImageInTrash, "image %q in pool %q was deleted with volume %q: "+
			"it stays in the trash for as long as this volume names it; bring it back with: rbd trash restore --pool %s %s",
			removal.Image, r.in.id.Pool, removal.Volume, r.in.id.Pool, removal.ID)
		one.told = true
	}
	return true, nil
}

// remove settles an image by removing it in this process.
func (r removing) remove(ctx context.Context, one *item) error {
	listed := one.by == ByManager
	one.by = ByProvisioner
	err := r.open.RemoveTrashed(ctx, one.removal.ID)
	switch {
	case err == nil, errors.Is(err, rbd.ErrImageNotFound):
		return r.done(ctx, one)
	case errors.Is(err, rbd.ErrTimeout):
		// The next attempt waits for it. If nothing answers, looking the image up then
		// shows that.
		klog.FromContext(ctx).V(2).Info("The image is still being removed from the trash")
		return errGoesOn
	case errors.Is(err, rbd.ErrImageHasSnapshots):
		r.removeCloneSnapshots(ctx, one.removal.ID)
	case !errors.Is(err, rbd.ErrImageInUse):
		return err
	}
	one.by = "" // if it is gone next time, another client removed it
	// The manager may have it open; if not, asking again makes it stop trying.
	listed = listed && r.askManager(ctx, one)
	r.postpone(one, r.retries.When(one))
	if !one.said && !listed {
		klog.FromContext(ctx).Info("An image of a deleted volume stays in the trash for now", "reason", err)
		one.said = true
	}
	return nil
}

// removeCloneSnapshots removes from an image in the trash the leftovers of attempts to
// clone it. No attempt can go on with them: the image's claim is gone.
func (r removing) removeCloneSnapshots(ctx context.Context, id string) {
	snapshots, err := r.open.Snapshots(ctx, id)
	if err == nil {
		_, err = image.RemoveCloneSnapshots(ctx, r.open, id, snapshots)
	}
	if err != nil {
		klog.FromContext(ctx).V(2).Info("The snapshots of an image in the trash could not be looked at, will retry", "err", err)
	}
}

// done clears the note of an image that needs nothing more, and forgets the image. If
// by is set, the image was removed as asked, and its parent may be waiting for that.
func (r removing) done(ctx context.Context, one *item) error {
	// If the image was deleted again meanwhile, its note is a new one.
	defer r.lock(one)()
	if !r.isCurrent(r.in, one) {
		return nil
	}
	if err := r.config.Journal.Removals.Clear(ctx, r.open, one.removal.ID); err != nil {
		return err // the next attempt finds the image gone
	}
	r.forget(r.in, one)
	if one.by != "" {
		klog.FromContext(ctx).Info("Image removed from the trash", "by", one.by)
		r.config.Purged(one.by)
		r.Wake(r.in.id, one.removal.Parent)
	}
	return nil
}
