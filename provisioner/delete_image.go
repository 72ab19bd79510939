// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// deletion is that of one volume's image.
type deletion struct {
	*Provisioner
	pool *access.Pool
	// location opened it.
	location volume.Location
	pv       *corev1.PersistentVolume
	record   volume.Record
}

func (d deletion) what() string {
	return fmt.Sprintf("image %q in pool %q", d.record.Image, d.record.Pool)
}

func (d deletion) place() journal.Place {
	return journal.Place{FSID: d.pool.FSID, Pool: d.record.Pool}
}

// run moves the image to the trash, unless it is somebody else's or in use.
func (d deletion) run(ctx context.Context) error {
	// Who works off the trash finds either nothing begun or all done.
	unlock := d.images.lock(d.place(), d.record.Image)
	defer unlock()
	image, err := d.pool.Image(ctx, d.record.Image)
	if err == nil {
		err = d.check(ctx, image)
	}
	if err == nil {
		// Last, so that nothing else keeps the image from the trash when this has been
		// asked.
		var waited bool
		if waited, err = d.catchUp(ctx); err == nil && waited {
			if image, err = d.pool.Image(ctx, d.record.Image); err == nil {
				err = d.check(ctx, image)
			}
		}
	}
	switch {
	case errors.Is(err, rbd.ErrImageBusy):
		return d.stillRemoving()
	case errors.Is(err, rbd.ErrImageNotFound):
		return d.finish(ctx)
	case err != nil:
		return err
	}
	return d.trash(ctx, image)
}

// check says what keeps an image from being removed. Snapshots that attempts to clone it
// left do not: they are removed on the way.
func (d deletion) check(ctx context.Context, image rbd.Image) error {
	if err := d.checkOthers(); err != nil {
		return err
	}
	if err := d.keeper().Check(d.pv, d.record, image); err != nil {
		return err
	}
	if len(image.Watchers) > 0 {
		return fmt.Errorf("%s: %w by %s: it is removed once no client has it open or mapped",
			d.what(), rbd.ErrImageInUse, strings.Join(image.Watchers, ", "))
	}
	snapshots, err := removeCloneSnapshots(ctx, d.pool, image.ID, image.Snapshots)
	if err != nil {
		return err
	}
	if len(snapshots) > 0 {
		return fmt.Errorf("%s: %w: %s: it is removed once they are gone",
			d.what(), rbd.ErrImageHasSnapshots, strings.Join(snapshots, ", "))
	}
	return nil
}

// trash notes that the image is to be removed and moves it to the trash.
func (d deletion) trash(ctx context.Context, image rbd.Image) error {
	removal := journal.Removal{
		ID:        image.ID,
		Image:     d.record.Image,
		Volume:    d.pv.Name,
		At:        time.Now(),
		Keep:      d.record.TrashRetention,
		SizeBytes: image.SizeBytes,
		Parent:    image.Parent,
	}
	err := d.removals.Write(ctx, d.pool, removal)
	if err == nil {
		err = d.pool.TrashImage(ctx, removal.Image, removal.Keep)
	}
	switch {
	case errors.Is(err, rbd.ErrImageNotFound):
		// Somebody else removed it since.
		return d.finish(ctx)
	case errors.Is(err, rbd.ErrPoolFull) && removal.Keep == 0:
		// There is no room for a note or for a trash in a pool that never had
		// one. What makes room must not fail for lack of it.
		return d.removeInPlace(ctx, "Image removed")
	case err != nil:
		return err
	}
	d.purger.add(d.place(), d.location, removal)
	values := []any{"image", removal.Image, "pool", d.record.Pool, "id", removal.ID}
	if removal.Keep > 0 {
		values = append(values, "keptUntil", removal.Due().UTC().Format(time.RFC3339))
	}
	klog.FromContext(ctx).Info("Image moved to the trash", values...)
	return nil
}

// finish is for an image that nobody can open any more. An earlier attempt may
// have moved it to the trash, or been cut off in that; or removed it, or been cut
// off in that, which leaves the data in the trash or remains that hold the name.
func (d deletion) finish(ctx context.Context) error {
	removals, _, err := d.removals.Read(ctx, d.pool)
	if err != nil {
		return err
	}
	done := "Image was gone already"
	for _, removal := range removals {
		if removal.Image != d.record.Image || removal.Volume != d.pv.Name {
			continue
		}
		done = "Image was in the trash already"
		// Ends a move that was cut off; usually none was.
		if err := d.pool.TrashImage(ctx, removal.Image, removal.Keep); err != nil && !errors.Is(err, rbd.ErrImageNotFound) {
			return err
		}
		d.purger.add(d.place(), d.location, removal)
	}
	err = d.removeInPlace(ctx, done)
	if errors.Is(err, rbd.ErrImageInUse) {
		return fmt.Errorf("%s: %w by a removal that was interrupted: that ends within half a minute, "+
			"and it goes on by itself", d.what(), rbd.ErrImageInUse)
	}
	return err
}

func (d deletion) removeInPlace(ctx context.Context, done string) error {
	err := removeIfThere(ctx, d.pool, d.record.Image)
	if errors.Is(err, rbd.ErrTimeout) {
		return d.stillRemoving()
	}
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info(done, "image", d.record.Image, "pool", d.record.Pool)
	return nil
}

// stillRemoving is about a removal that outlives its deadline. Nothing need be
// wrong with Ceph: librbd deletes every object that the image could have.
func (d deletion) stillRemoving() error {
	return fmt.Errorf("%s is still being removed, which takes longer the larger it is: it goes on by itself", d.what())
}
