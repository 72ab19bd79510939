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
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	// moveTime is the longest that a move to the trash may take. If an image got there
	// later, someone restored it and put it there again.
	moveTime = 10 * time.Minute
	// absentFor is how long an image must be absent before its note is cleared: the move
	// by a client that died, or was stopped and goes on, may still reach an OSD.
	absentFor = time.Minute
)

// removing removes images of an open pool.
type removing struct {
	*Queue
	in   *pool
	open *access.Pool
}

// settle removes one image, leaves it to Ceph's manager, or postpones it. An error ends
// the round: the pool's other images would fail, too, or are not to begin yet.
func (r removing) settle(ctx context.Context, one *item) error {
	removal := one.removal
	logger := klog.FromContext(ctx).WithValues("image", removal.Image, "id", removal.ID, "PV", removal.Volume)
	ctx = klog.NewContext(ctx, logger)
	found, err := r.lookUp(ctx, one)
	if err != nil {
		return err
	}
	late := found != nil && found.Since.After(removal.At.Add(moveTime))
	switch {
	case found == nil && one.remover == "" && time.Since(one.absent) < absentFor:
		one.postpone(absentFor)
		return nil
	case found == nil:
		return r.done(ctx, one)
	case late && r.isBeingDeleted(one):
		// The move took long; the deletion still runs, and will note that.
		one.retry()
		return nil
	case late || found.Name != removal.Image:
		logger.Info("Left an image in the trash that another client restored and moved there again")
		one.remover = ""
		return r.done(ctx, one)
	}
	switch pv, err := r.config.Volumes.Stays(r.imageID(one)); {
	case err != nil:
		return err
	case pv != nil:
		r.keep(ctx, one, pv)
		return nil
	// Only RemoveTrashed completes a move that was cut off.
	case !found.Moving && one.left <= image.Large && r.leaveToManager(ctx, one):
		return nil
	}
	return r.remove(ctx, one)
}

// lookUp looks for an image in the trash, and returns nil if it is absent. If remover is set
// then, it was removed; otherwise someone has restored it, or its move may still come.
func (r removing) lookUp(ctx context.Context, one *item) (*rbd.Trashed, error) {
	// Not in the middle of its deletion.
	defer r.config.Journal.Locks.Lock(r.imageID(one))()
	if !one.absent.IsZero() {
		// The note may be about to be cleared. A move by this process may still wait for an
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
	switch {
	case err == nil:
		one.absent = time.Time{}
		return &found, nil
	case !errors.Is(err, rbd.ErrImageNotFound):
		return nil, err
	case one.absent.IsZero():
		one.absent = time.Now()
	}
	if one.remover == "" {
		return nil, nil
	}
	switch restored, err := r.open.Image(ctx, one.removal.Image); {
	case err != nil && !errors.Is(err, rbd.ErrImageNotFound):
		return nil, err
	case restored.ID == one.removal.ID:
		one.remover = ""
	}
	return nil, nil
}

func (r removing) imageID(one *item) volume.ImageID { return r.in.id.Image(one.removal.Image) }

// isBeingDeleted reports whether an image's volume still exists and is being deleted.
func (r removing) isBeingDeleted(one *item) bool {
	volumes, err := r.config.Volumes.Of(r.imageID(one))
	return err == nil && slices.ContainsFunc(volumes, func(pv *corev1.PersistentVolume) bool {
		return pv.Name == one.removal.Volume && index.Goes(pv)
	})
}

// keep leaves an image in the trash that a volume names: one restored from a backup, or a
// second one. An administrator can bring the image back.
func (r removing) keep(ctx context.Context, one *item, pv *corev1.PersistentVolume) {
	one.retry()
	// Promise nothing where its removal has begun.
	if one.warned || one.remover != "" {
		return
	}
	one.warned = true
	klog.FromContext(ctx).Info("An image of a deleted volume stays in the trash, since another volume names it", "by", pv.Name)
	r.config.Events.Eventf(pv, corev1.EventTypeWarning, "ImageInTrash", "image %q in pool %q was deleted with volume %q: "+
		"it stays in the trash for as long as this volume names it; bring it back with: rbd trash restore --pool %s %s",
		one.removal.Image, r.in.id.Pool, one.removal.Volume, r.in.id.Pool, one.removal.ID)
}

// remove settles an image by removing it in this process, or a slice of it.
func (r removing) remove(ctx context.Context, one *item) error {
	listed := one.remover == ByManager
	one.remover = ByProvisioner
	var err error
	if one.left > image.Large {
		err = r.removeSlice(ctx, one)
	} else {
		err = r.open.RemoveTrashed(ctx, one.removal.ID)
	}
	switch {
	case work.IsLater(err):
		return err
	case err == nil, errors.Is(err, rbd.ErrImageNotFound):
		return r.done(ctx, one)
	case errors.Is(err, rbd.ErrTimeout):
		// librbd goes on. The next attempt waits for it. If nothing answers, looking the
		// image up then shows that.
		klog.FromContext(ctx).V(2).Info("The image is still being removed from the trash")
		return work.Later(pause)
	case errors.Is(err, rbd.ErrImageHasSnapshots):
		r.removeCloneSnapshots(ctx, one.removal.ID)
	case !errors.Is(err, rbd.ErrImageInUse) && !errors.Is(err, rbd.ErrImageHeld):
		return err
	}
	one.remover = "" // if it is gone next time, another client removed it
	// The manager may have it open; if not, asking again makes it stop trying.
	listed = listed && r.askManager(ctx, one)
	one.retry()
	if !one.logged && !listed {
		klog.FromContext(ctx).Info("An image of a deleted volume stays in the trash for now", "reason", err)
		one.logged = true
	}
	return nil
}

// removeSlice removes a slice of a large image.
func (r removing) removeSlice(ctx context.Context, one *item) error {
	left, err := r.open.ShrinkTrashed(ctx, one.removal.ID, slice)
	if err != nil && !errors.Is(err, rbd.ErrImageNotFound) { // its entry in the trash may still be there
		return err
	}
	one.left = left
	if time.Since(one.told) >= time.Hour {
		one.told = time.Now()
		klog.FromContext(ctx).Info("A large image is removed from the trash in parts, after all smaller ones of its pool",
			"sizeBytes", one.removal.SizeBytes, "leftBytes", left)
	}
	one.postpone(pause) // it gives way again
	return work.Later(pause)
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
// remover is set, the image was removed as asked, and its parent may be waiting for that.
func (r removing) done(ctx context.Context, one *item) error {
	defer r.config.Journal.Locks.Lock(r.imageID(one))()
	r.mu.Lock()
	current := r.in.items[one.removal.ID] == one
	r.mu.Unlock()
	if !current {
		return nil // the image was deleted again meanwhile: its note is a new one
	}
	if err := r.config.Journal.Removals.Clear(ctx, r.open, one.removal.ID); err != nil {
		return err // the next attempt finds the image gone
	}
	r.mu.Lock()
	delete(r.in.items, one.removal.ID)
	r.mu.Unlock()
	if one.remover == ByManager {
		r.managerRemoved()
	}
	if one.remover != "" {
		klog.FromContext(ctx).Info("Image removed from the trash", "by", one.remover)
		r.config.Purged(one.remover)
		r.Wake(r.in.id, one.removal.Parent)
	}
	return nil
}

// postpone sets when an image is looked at next.
func (i *item) postpone(wait time.Duration) { i.due = time.Now().Add(wait) }

// retry postpones an image that can't be removed yet, for longer each time.
func (i *item) retry() {
	i.delay = work.NextDelay(i.delay)
	i.postpone(i.delay)
}
