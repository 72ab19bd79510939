// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// CloneDepthLimit is how many images may depend on one another for Linux to map the
// last. Source: RBD_MAX_PARENT_CHAIN_LEN in drivers/block/rbd.c.
const CloneDepthLimit = 16

const (
	// cloneSnapshotPrefix begins the names of the snapshots from which clones are
	// made. One is there while its clone is made, or until somebody finds what an
	// attempt left that was cut off.
	cloneSnapshotPrefix = "rbd_provisioner.clone."
	// snapshotsOfLinux is how many snapshots an image may have for Linux to map
	// it. Source: RBD_MAX_SNAP_COUNT, 510, in drivers/block/rbd_types.h. There is
	// some room left for people's own.
	snapshotsOfLinux = 480
	// manySnapshots is from how many on further clones of an image are flattened,
	// so that there is an end to them.
	manySnapshots = 100
)

// cloneSnapshot names the snapshot for the clone that a claim gets.
func cloneSnapshot(claimUID string) string { return cloneSnapshotPrefix + claimUID }

// origin is the image that a clone is made from: its ID, and the volume that its
// metadata names. Before a clone is marked, they tell that it is one.
type origin struct {
	imageID, volume string
}

// cloning is the making of one clone.
type cloning struct {
	*Provisioner
	request
	pool     *access.Pool
	location volume.Location
	owner    map[string]string
	intent   journal.Intent
}

func (c cloning) place() journal.Place {
	return journal.Place{FSID: c.pool.FSID, Pool: c.location.Pool}
}

// run makes the clone, or goes on where an earlier attempt was cut off. Once the
// image is marked as the claim's, all else is done.
func (c cloning) run(ctx context.Context) error {
	// Neither a deletion of the source may come between, nor another clone of it:
	// each snapshot has all clients answer that have the image open.
	unlock := c.images.lock(c.place(), c.source.record.Image)
	defer unlock()
	source, err := c.lookAtSource(ctx)
	if err != nil {
		return err
	}
	c.origin = &origin{imageID: source.ID, volume: c.source.volume}
	c.intent.SourceID, c.intent.SourceVolume = c.origin.imageID, c.origin.volume
	if err := c.note(ctx, c.pool, c.intent); err != nil {
		return err
	}
	image, err := c.pool.Image(ctx, c.image)
	switch {
	case errors.Is(err, rbd.ErrImageNotFound):
		if err := c.make(ctx, source); err != nil {
			return err
		}
		image.SizeBytes = source.SizeBytes
	case err != nil:
		return errNotStarted{err}
	default:
		if err := c.checkConflict(image, c.owner); err != nil {
			return err
		}
		if marked(image.Metadata, c.owner) {
			return nil
		}
	}
	return c.finish(ctx, source, image)
}

// lookAtSource asks Ceph for the source. Its error wraps errNotStarted.
func (c cloning) lookAtSource(ctx context.Context) (rbd.Image, error) {
	s := c.source
	if s.record.FSID != "" && s.record.FSID != c.pool.FSID {
		return rbd.Image{}, errNotStarted{fmt.Errorf("%s is in Ceph cluster %q: use a StorageClass with its monitors, since %q is another one",
			s.what(), s.record.FSID, c.pool.FSID)}
	}
	image, err := c.pool.Image(ctx, s.record.Image)
	if err != nil {
		return image, errNotStarted{fmt.Errorf("%s can't be cloned: %w", s.what(), err)}
	}
	owner := map[string]string{metaVolume: s.volume, metaIdentity: c.config.Identity}
	wanted := uint64(c.sizeBytes) // #nosec G115 -- imageSize returns no negative size
	switch whose := volume.Foreign(image.Metadata, owner); {
	case whose != "":
		err = fmt.Errorf("%s has the image %q, which is not its volume's: %s", s.what(), s.record.Image, whose)
	case image.SizeBytes > wanted:
		size := resource.NewQuantity(int64(image.SizeBytes), resource.BinarySI) // #nosec G115 -- no image is that large
		err = fmt.Errorf("%s has %s, more than the claim requests: request at least that", s.what(), size.String())
	case len(image.Snapshots)+image.Kept >= snapshotsOfLinux:
		err = fmt.Errorf("%s has nearly as many clones and snapshots as Linux can map an image with: "+
			"further ones are made once some of its clones are flattened or deleted", s.what())
	}
	if err != nil {
		return image, errNotStarted{err}
	}
	return image, nil
}

// make makes the image from a snapshot of the source.
func (c cloning) make(ctx context.Context, source rbd.Image) error {
	if err := c.noteFlattening(ctx, source); err != nil {
		return err
	}
	snapshot := cloneSnapshot(c.intent.ClaimUID)
	if err := c.pool.SnapshotImage(ctx, c.source.record.Image, snapshot); err != nil {
		return errNotStarted{err}
	}
	spec := rbd.CloneSpec{Source: c.source.record.Image, Snapshot: snapshot, DataPool: c.params.DataPool}
	err := c.pool.CloneImage(ctx, c.image, spec)
	if errors.Is(err, rbd.ErrImageExists) {
		// Nothing could be opened, so it is remains of an attempt that was cut
		// off.
		klog.FromContext(ctx).V(2).Info("Removing what is left of a half-made image", "image", c.image)
		if err = removeIfThere(ctx, c.pool, c.image); err == nil {
			err = c.pool.CloneImage(ctx, c.image, spec)
		}
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, rbd.ErrTimeout) && !errors.Is(err, rbd.ErrConnectionLost) {
		// As good as can be: the intent says where it is otherwise.
		if err := c.pool.RemoveSnapshot(ctx, source.ID, snapshot); err != nil {
			klog.FromContext(ctx).V(2).Info("The snapshot for a clone could not be removed, trying again later",
				"image", c.source.record.Image, "snapshot", snapshot, "err", err)
		}
	}
	return createFault(err)
}

// finish does what is left once the image is there. What says whose it is comes
// last.
func (c cloning) finish(ctx context.Context, source, image rbd.Image) error {
	if err := c.pool.RemoveSnapshot(ctx, source.ID, cloneSnapshot(c.intent.ClaimUID)); err != nil {
		return err
	}
	wanted := uint64(c.sizeBytes) // #nosec G115 -- imageSize returns no negative size
	if image.SizeBytes < wanted {
		if err := c.pool.GrowImage(ctx, c.image, wanted); err != nil {
			return err
		}
	}
	if err := c.pool.SetMetadata(ctx, c.image, c.owner); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Image cloned", "image", c.image, "source", c.source.record.Image)
	return nil
}

// isFresh reports whether an image is a clone of its source that is not marked yet:
// Ceph has copied the source's metadata.
func (o *origin) isFresh(image rbd.Image, identity string) bool {
	return o != nil && image.Parent == o.imageID && volume.Foreign(image.Metadata, map[string]string{
		metaVolume: o.volume, metaIdentity: identity,
	}) == ""
}

// removeCloneSnapshots removes the snapshots of an image that attempts to clone it
// left, and returns the names of the others.
func removeCloneSnapshots(ctx context.Context, pool rbd.Pool, id string, snapshots []string) (others []string, err error) {
	for _, name := range snapshots {
		if !strings.HasPrefix(name, cloneSnapshotPrefix) {
			others = append(others, name)
			continue
		}
		if err := pool.RemoveSnapshot(ctx, id, name); err != nil {
			return nil, err
		}
	}
	return slices.Clip(others), nil
}

// dropCloneSnapshots removes from an image in the trash what attempts to clone it
// left. Nobody can go on with them: its claim is gone.
func (p *Provisioner) dropCloneSnapshots(ctx context.Context, pool rbd.Pool, id string) {
	snapshots, err := pool.Snapshots(ctx, id)
	if err == nil {
		_, err = removeCloneSnapshots(ctx, pool, id, snapshots)
	}
	if err != nil {
		klog.FromContext(ctx).V(2).Info("The snapshots of an image in the trash could not be looked at, trying again", "id", id, "err", err)
	}
}
