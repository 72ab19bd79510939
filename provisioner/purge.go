// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

const (
	// purgeEvery is how often it is looked for images that are due.
	purgeEvery = time.Second
	// moveTime is how long after it was begun a move to the trash may end. An
	// image that went there later was restored by somebody and put there again.
	moveTime = 10 * time.Minute
)

// errGoesOn says that librbd is still removing an image, which takes the longer
// the larger it is.
var errGoesOn = errors.New("the removal goes on")

// purgeLoop removes images from the trash that are due, until ctx ends. What it
// is in the middle of then, the next leader goes on with.
func (p *Provisioner) purgeLoop(ctx context.Context) {
	ticker := time.NewTicker(purgeEvery)
	defer ticker.Stop()
	var work sync.WaitGroup
	defer work.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for place, in := range p.purger.begin(time.Now()) {
			work.Go(func() {
				defer p.purger.end(place)
				p.purge(ctx, place, in)
			})
		}
	}
}

// purge removes what is due in a place.
func (p *Provisioner) purge(ctx context.Context, place journal.Place, in *purgePlace) {
	logger := klog.FromContext(ctx).WithValues("pool", place.Pool)
	ctx = klog.NewContext(ctx, logger)
	err := p.purgeDue(ctx, place, in)
	if err == nil {
		in.backoff, in.said = 0, false
		return
	}
	in.again = time.Now().Add(delay(&in.backoff))
	if !in.said && ctx.Err() == nil {
		logger.Info("Images of deleted volumes could not be removed from the trash, trying on", "err", err)
		in.said = true
	}
}

func (p *Provisioner) purgeDue(ctx context.Context, place journal.Place, in *purgePlace) error {
	location, items := p.purger.due(in, time.Now())
	items = slices.DeleteFunc(items, p.givesWay)
	if len(items) == 0 {
		return nil
	}
	pool, err := p.config.Access.OpenForVolume(ctx, location)
	if err != nil {
		return err
	}
	defer pool.Close()
	if pool.FSID != place.FSID {
		return access.ErrOtherCluster
	}
	var settled []*purgeItem
	for _, item := range items {
		if ctx.Err() != nil {
			break
		}
		if p.givesWay(item) {
			continue
		}
		done, purgeErr := p.purgeImage(ctx, pool.Pool, place, in, item)
		if done {
			settled = append(settled, item)
		}
		if errors.Is(purgeErr, errGoesOn) {
			break
		}
		if err = purgeErr; err != nil {
			break
		}
	}
	if clearErr := p.clearRemovals(ctx, pool, in, settled); clearErr != nil {
		// One whose note stays is looked at once more, and found gone.
		err = errors.Join(err, clearErr)
	}
	if err != nil {
		return access.Explain(err, location)
	}
	return nil
}

// clearRemovals clears the notes of images that are settled.
func (p *Provisioner) clearRemovals(ctx context.Context, pool rbd.Pool, in *purgePlace, settled []*purgeItem) error {
	if len(settled) == 0 {
		return nil
	}
	ids := make([]string, len(settled))
	for i, item := range settled {
		ids[i] = item.removal.ID
	}
	if err := p.removals.Clear(ctx, pool, ids...); err != nil {
		return err
	}
	p.purger.forget(in, settled)
	return nil
}

// givesWay reports whether an image can wait for operations that somebody waits
// for. In the middle of many, there is none for a moment now and then.
func (p *Provisioner) givesWay(item *purgeItem) bool {
	// In this order: what ends is noted before it is counted out.
	busy := p.operations.Load() > 0
	if ended := p.ended.Load(); ended != nil && time.Since(*ended) < purgeQuiet {
		busy = true
	}
	return busy && time.Since(item.due) < purgePatience
}

// purgeImage removes one image, and reports whether its removal is settled. An
// error says that others in the pool would fail, too.
func (p *Provisioner) purgeImage(ctx context.Context, pool rbd.Pool, place journal.Place, in *purgePlace, item *purgeItem) (settled bool, err error) {
	removal := item.removal
	logger := klog.FromContext(ctx).WithValues("image", removal.Image, "id", removal.ID, "PV", removal.Volume)
	found, err := p.lookUp(ctx, pool, place, item)
	switch {
	case err != nil:
		return false, err
	case found == nil && item.by != "":
		p.purged(logger, place, item)
		return true, nil
	case found == nil:
		return time.Since(item.absent) >= absentFor, nil
	case found.Name != removal.Image || found.Since.After(removal.At.Add(moveTime)):
		logger.Info("Left an image in the trash that somebody put there anew")
		return true, nil
	}
	if kept, err := p.keepRestored(logger, place, item); err != nil || kept {
		return false, err
	}
	// A move that was cut off, only RemoveTrashed ends.
	if !found.Moving && p.leaveToManager(ctx, pool, in, item) {
		return false, nil
	}
	listed := item.by == ByManager
	item.by = ByProvisioner
	err = pool.RemoveTrashed(ctx, removal.ID)
	switch {
	case err == nil, errors.Is(err, rbd.ErrImageNotFound):
		p.purged(logger, place, item)
		return true, nil
	case errors.Is(err, rbd.ErrTimeout):
		// The next attempt waits for it. When nothing answers, looking the image
		// up then shows it.
		logger.V(2).Info("The image is still being removed from the trash")
		return false, errGoesOn
	case errors.Is(err, rbd.ErrImageInUse), errors.Is(err, rbd.ErrImageHasSnapshots):
		if errors.Is(err, rbd.ErrImageHasSnapshots) {
			p.dropCloneSnapshots(ctx, pool, removal.ID)
		}
		item.by = "" // when it is gone the next time, that was somebody else
		// It may be the manager that has it open; if not, that is to try no more.
		listed = listed && p.askManager(ctx, pool, in, item)
		p.purger.postpone(item, time.Now().Add(delay(&item.backoff)))
		if !item.said && !listed {
			logger.Info("An image of a deleted volume stays in the trash for now", "reason", err)
			item.said = true
		}
		return false, nil
	}
	return false, err
}

// lookUp looks for an image in the trash. It returns nil when it is not there:
// somebody has restored or removed it; or a call that was cut off still reaches an
// OSD, so it is looked for again.
func (p *Provisioner) lookUp(ctx context.Context, pool rbd.Pool, place journal.Place, item *purgeItem) (*rbd.Trashed, error) {
	// Not in the middle of its deletion.
	unlock := p.images.lock(place, item.removal.Image)
	defer unlock()
	found, err := pool.Trashed(ctx, item.removal.ID)
	if err == nil && found.Moving {
		if _, err = pool.Image(ctx, item.removal.Image); errors.Is(err, rbd.ErrImageNotFound) {
			// No other image has the name: this one's move is ended.
			err = pool.TrashImage(ctx, item.removal.Image, item.removal.Keep)
		}
	}
	if errors.Is(err, rbd.ErrImageNotFound) {
		if item.by != "" {
			image, err := pool.Image(ctx, item.removal.Image)
			switch {
			case err == nil && image.ID == item.removal.ID:
				item.by = "" // it was restored, and not removed
			case err != nil && !errors.Is(err, rbd.ErrImageNotFound):
				return nil, err
			}
		}
		if item.absent.IsZero() {
			item.absent = time.Now()
			p.purger.postpone(item, item.absent.Add(absentFor))
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	item.absent = time.Time{}
	return &found, nil
}

// keepRestored reports whether a volume names the image again: somebody has restored
// one from a backup, or made a second one. The image then stays in the trash, from
// where it can be brought back.
func (p *Provisioner) keepRestored(logger klog.Logger, place journal.Place, item *purgeItem) (bool, error) {
	removal := item.removal
	pv, err := p.restored(place, removal)
	if err != nil || pv == nil {
		return false, err
	}
	p.purger.postpone(item, time.Now().Add(delay(&item.backoff)))
	// What Ceph's manager was asked to remove, it may still remove: no promise is made.
	if !item.told && item.by != ByManager {
		logger.Info("An image of a deleted volume stays in the trash, since another volume names it", "by", pv.Name)
		p.config.Events.Eventf(pv, corev1.EventTypeWarning, reasonImageInTrash, "image %q in pool %q was deleted with volume %q: "+
			"it stays in the trash for as long as this volume names it; bring it back with: rbd trash restore --pool %s %s",
			removal.Image, place.Pool, removal.Volume, place.Pool, removal.ID)
		item.told = true
	}
	return true, nil
}

// purged settles an image that was removed, and tells of it.
func (p *Provisioner) purged(logger klog.Logger, place journal.Place, item *purgeItem) {
	p.purger.wake(place, item.removal.Parent)
	logger.Info("Image removed from the trash", "by", item.by)
	if p.config.Purged != nil {
		p.config.Purged(item.by)
	}
}

// loadRemovals takes up what earlier leaders left in the trash of a place.
func (r *recovery) loadRemovals(ctx context.Context, pool rbd.Pool, place journal.Place, w whereabout) error {
	if r.loaded[place] {
		return nil
	}
	removals, unreadable, err := r.removals.Read(ctx, pool)
	if err != nil {
		return err
	}
	if len(unreadable) > 0 {
		klog.FromContext(ctx).Info("Removals of another version are left alone", "pool", place.Pool,
			"object", r.removals.Object, "ids", unreadable)
	}
	if len(removals) > 0 {
		klog.FromContext(ctx).Info("Taking up the removal of images in the trash", "pool", place.Pool, "count", len(removals))
	}
	for _, removal := range removals {
		r.purger.add(place, w.location, removal)
	}
	r.loaded[place] = true
	return nil
}
