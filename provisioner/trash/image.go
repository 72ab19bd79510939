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
	// moveTime is how long after it was begun a move to the trash may end. An image
	// that went there later was restored by somebody and put there again.
	moveTime = 10 * time.Minute
	// absentFor is how long an image must not be there before its note is cleared: a
	// call of a client that died, or of a process that was stopped and goes on, may
	// still reach an OSD.
	absentFor = time.Minute
)

// reasonImageInTrash is that of events on volumes.
const reasonImageInTrash = "ImageInTrash"

// errGoesOn says that librbd is still removing an image, which takes the longer the
// larger it is.
var errGoesOn = errors.New("the removal goes on")

// removing is the removal of a pool's images, while the pool is open.
type removing struct {
	*Queue
	in   *pool
	open *access.Pool
}

// settle has one image removed, or postpones it. An error says that it would fail with
// others in the pool, too; or is errGoesOn.
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
		// The move took long, and the deletion, which goes on, notes that.
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
	// A move that was cut off, only RemoveTrashed ends.
	if !found.Moving && r.leaveToManager(ctx, one) {
		return nil
	}
	return r.remove(ctx, one)
}

// lookUp looks for an image in the trash. It returns nil when it is not there: it was
// removed, which by says then, or somebody has restored it; or a call that was cut off
// still reaches an OSD, so it is looked for again.
func (r removing) lookUp(ctx context.Context, one *item) (*rbd.Trashed, error) {
	// Not in the middle of its deletion.
	defer r.lock(one)()
	if one.by == "" && !one.absent.IsZero() && time.Since(one.absent) >= absentFor {
		// The note is about to be cleared. A move by this process may still wait for an
		// OSD, however long; it has the name until then, for which this waits.
		if _, err := r.open.Image(ctx, one.removal.Image); err != nil && !errors.Is(err, rbd.ErrImageNotFound) {
			return nil, err
		}
	}
	found, err := r.open.Trashed(ctx, one.removal.ID)
	if err == nil && found.Moving {
		if _, err = r.open.Image(ctx, one.removal.Image); errors.Is(err, rbd.ErrImageNotFound) {
			// No other image has the name: this one's move is ended.
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

// isBeingDeleted reports whether the volume of an image is there still, and its deletion
// under way.
func (r removing) isBeingDeleted(one *item) bool {
	volumes, err := r.config.Volumes.Of(r.in.id.Image(one.removal.Image))
	return err == nil && slices.ContainsFunc(volumes, func(pv *corev1.PersistentVolume) bool {
		return pv.Name == one.removal.Volume && index.Goes(pv)
	})
}

func (r removing) lock(one *item) (unlock func()) {
	return r.config.Journal.Locks.Lock(r.in.id.Image(one.removal.Image))
}

// keepRestored reports whether a volume names the image again: somebody has restored
// one from a backup, or made a second one. The image then stays in the trash, from
// where it can be brought back.
func (r removing) keepRestored(ctx context.Context, one *item) (bool, error) {
	removal := one.removal
	pv, err := r.config.Volumes.Stays(r.in.id.Image(removal.Image))
	if err != nil || pv == nil {
		return false, err
	}
	r.postpone(one, r.retries.When(one))
	// What Ceph's manager was asked to remove, it may still remove: no promise is made.
	if !one.told && one.by != ByManager {
		klog.FromContext(ctx).Info("An image of a deleted volume stays in the trash, since another volume names it", "by", pv.Name)
		r.config.Events.Eventf(pv, corev1.EventTypeWarning, reasonImageInTrash, "image %q in pool %q was deleted with volume %q: "+
			"it stays in the trash for as long as this volume names it; bring it back with: rbd trash restore --pool %s %s",
			removal.Image, r.in.id.Pool, removal.Volume, r.in.id.Pool, removal.ID)
		one.told = true
	}
	return true, nil
}

// remove is settle for an image that this process removes.
func (r removing) remove(ctx context.Context, one *item) error {
	listed := one.by == ByManager
	one.by = ByProvisioner
	err := r.open.RemoveTrashed(ctx, one.removal.ID)
	switch {
	case err == nil, errors.Is(err, rbd.ErrImageNotFound):
		return r.done(ctx, one)
	case errors.Is(err, rbd.ErrTimeout):
		// The next attempt waits for it. When nothing answers, looking the image
		// up then shows it.
		klog.FromContext(ctx).V(2).Info("The image is still being removed from the trash")
		return errGoesOn
	case errors.Is(err, rbd.ErrImageHasSnapshots):
		r.removeCloneSnapshots(ctx, one.removal.ID)
	case !errors.Is(err, rbd.ErrImageInUse):
		return err
	}
	one.by = "" // when it is gone the next time, that was somebody else
	// It may be the manager that has it open; if not, that is to try no more.
	listed = listed && r.askManager(ctx, one)
	r.postpone(one, r.retries.When(one))
	if !one.said && !listed {
		klog.FromContext(ctx).Info("An image of a deleted volume stays in the trash for now", "reason", err)
		one.said = true
	}
	return nil
}

// removeCloneSnapshots removes from an image in the trash what attempts to clone it
// left. Nobody can go on with them: its claim is gone.
func (r removing) removeCloneSnapshots(ctx context.Context, id string) {
	snapshots, err := r.open.Snapshots(ctx, id)
	if err == nil {
		_, err = image.RemoveCloneSnapshots(ctx, r.open, id, snapshots)
	}
	if err != nil {
		klog.FromContext(ctx).V(2).Info("The snapshots of an image in the trash could not be looked at, will retry", "err", err)
	}
}

// done clears the note of an image for which nothing is left to do, and forgets the
// image. If somebody was asked to remove it, they have, and its parent may be waiting for
// that.
func (r removing) done(ctx context.Context, one *item) error {
	// The note of an image that was deleted again meanwhile is another one.
	defer r.lock(one)()
	if !r.isCurrent(r.in, one) {
		return nil
	}
	if err := r.config.Journal.Removals.Clear(ctx, r.open, one.removal.ID); err != nil {
		return err // and it is found gone by the next attempt
	}
	r.forget(r.in, one)
	if one.by != "" {
		klog.FromContext(ctx).Info("Image removed from the trash", "by", one.by)
		r.config.Purged(one.by)
		r.Wake(r.in.id, one.removal.Parent)
	}
	return nil
}
