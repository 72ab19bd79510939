// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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
	// it, less some room for people's own. Source: RBD_MAX_SNAP_COUNT, 510, in
	// drivers/block/rbd_types.h. From manySnapshots on, clones of an image are
	// flattened, so that it keeps no snapshot for them.
	snapshotsOfLinux = 480
	manySnapshots    = 400
	// sourceWait is how long the making of a clone waits for others of its source.
	// It has a worker meanwhile.
	sourceWait = 2 * time.Second
)

// metaFlattening is an entry of the metadata of a clone: that it is to be flattened
// before it gets its volume, or that it was.
const (
	metaFlattening    = "rbd.ceph.com/flattening"
	flatteningPending = "pending"
	flatteningDone    = "done"
)

// cloneSnapshot names the snapshot for the clone that a claim gets.
func cloneSnapshot(claimUID string) string { return cloneSnapshotPrefix + claimUID }

// origin is the image that a clone is made from: its ID, and the volume that its
// metadata names. Before a clone is marked, they tell that it is one.
type origin struct {
	imageID, volume string
}

func originOf(in journal.Intent) *origin {
	if in.SourceID == "" {
		return nil
	}
	return &origin{imageID: in.SourceID, volume: in.SourceVolume}
}

// isFresh reports whether an image is a clone of its source that is not marked yet:
// Ceph has copied the source's metadata, or not yet.
func (o *origin) isFresh(image rbd.Image, owner volume.Owner) bool {
	return o != nil && image.Parent == o.imageID && volume.Foreign(image.Metadata, volume.Owner{
		Volume: o.volume, Identity: owner.Identity, Cluster: owner.Cluster,
	}) == ""
}

// mayBeBare reports whether an image may be what is there before Ceph has written
// into the clone what it is a clone of: nobody's, and empty.
func (o *origin) mayBeBare(image rbd.Image) bool {
	return o != nil && image.Parent == "" && image.Metadata[metaVolume] == "" && image.Metadata[metaIdentity] == ""
}

// cloning is the making of one clone.
type cloning struct {
	*Provisioner
	request
	pool     *access.Pool
	location volume.Location
	owner    owner
	intent   journal.Intent
	// earlier is the intent of an earlier attempt; empty when there was none.
	earlier journal.Intent
}

func (c cloning) key() imageKey {
	return imageKey{journal.Place{FSID: c.pool.FSID, Pool: c.location.Pool}, c.image}
}

// run makes the clone, or goes on where an earlier attempt was cut off.
func (c cloning) run(ctx context.Context) (err error) {
	if c.hasJournal() {
		if c.earlier, err = c.journal.Of(ctx, c.pool, c.image); err != nil {
			return err
		}
	}
	image, err := c.pool.Image(ctx, c.image)
	found := err == nil
	if err != nil && !errors.Is(err, rbd.ErrImageNotFound) {
		return err
	}
	if found && image.Metadata[metaVolume] == c.owner.Volume && image.Metadata[metaIdentity] == c.owner.Identity {
		// Made already: the source may be gone.
		c.source.restore(c.earlier)
		if err := c.checkConflict(image, c.owner.Owner); err != nil {
			return err
		}
		if !marked(image.Metadata, c.owner.marks()) { // by an earlier version
			if err := c.pool.SetMetadata(ctx, c.image, c.owner.marks()); err != nil {
				return err
			}
		}
		return c.flattened(ctx, image)
	}
	if c.source.err != nil {
		return c.source.err
	}
	// Neither a deletion of the source may come between, nor another clone of it:
	// each snapshot has all clients answer that have the image open.
	unlock, locked := c.images.lockWithin(c.key().place, c.source.record.Image, sourceWait)
	if !locked {
		return fmt.Errorf("other clones of %s are being made, or it is being deleted: it is tried again by itself", c.source.what())
	}
	defer unlock()
	source, err := c.lookAtSource(ctx)
	if err != nil {
		return err
	}
	c.origin = &origin{imageID: source.ID, volume: c.source.volume}
	if c.earlier.SourceID != "" && c.earlier.SourceID != source.ID {
		if found, err = c.forgetEarlier(ctx, image, found); err != nil {
			return err
		}
	}
	c.intent.SourceID, c.intent.SourceVolume = source.ID, c.source.volume
	c.intent.SourceFSType, c.intent.SourceBytes = c.source.record.FSType, c.source.capacity.Value()
	if err := c.note(ctx, c.pool, c.intent); err != nil {
		return err
	}
	if found {
		if found, err = c.isWhole(ctx, source, image); err != nil {
			return err
		}
	}
	if !found {
		if image, err = c.make(ctx, source); err != nil {
			return err
		}
	}
	return c.finish(ctx, source, image)
}

// forgetEarlier removes what an earlier attempt made from another source, which the
// source's claim had then; and reports whether the image is still there.
func (c cloning) forgetEarlier(ctx context.Context, image rbd.Image, found bool) (bool, error) {
	if found && originOf(c.earlier).isFresh(image, c.owner.Owner) {
		if err := removeIfThere(ctx, c.pool, c.image); err != nil {
			return true, err
		}
		found = false
	}
	return found, c.pool.RemoveSnapshot(ctx, c.earlier.SourceID, cloneSnapshot(c.intent.ClaimUID))
}

// lookAtSource asks Ceph for the source.
func (c cloning) lookAtSource(ctx context.Context) (rbd.Image, error) {
	s := c.source
	if s.record.FSID != "" && s.record.FSID != c.pool.FSID {
		return rbd.Image{}, fmt.Errorf("%s is in Ceph cluster %q: use a StorageClass with its monitors, since %q is another one",
			s.what(), s.record.FSID, c.pool.FSID)
	}
	image, err := c.pool.Image(ctx, s.record.Image)
	if err != nil {
		return image, fmt.Errorf("%s can't be cloned: %w", s.what(), err)
	}
	switch whose := volume.Foreign(image.Metadata, c.ownedBy(s.volume)); {
	case whose != "":
		err = fmt.Errorf("%s has the image %q, which is not its volume's: %s: see the events of volume %q", s.what(), s.record.Image, whose, s.volume)
	case image.SizeBytes > c.wantedBytes():
		err = s.tooLarge(*resource.NewQuantity(int64(image.SizeBytes), resource.BinarySI)) // #nosec G115 -- no image is that large
	case len(image.Snapshots)+image.Kept >= snapshotsOfLinux:
		err = fmt.Errorf("%s has nearly as many snapshots and clones as Linux can map an image with: "+
			"it is cloned once some are removed or flattened", s.what())
	}
	return image, err
}

// isWhole looks at an image of the clone's name that is not marked. It reports
// whether that is a clone that can be gone on with; what is left of one that was not
// made to the end it removes. Any other image is an error, and stays as it is.
func (c cloning) isWhole(ctx context.Context, source, image rbd.Image) (bool, error) {
	whole := false
	switch {
	case c.origin.isFresh(image, c.owner.Owner) && image.SizeBytes <= c.wantedBytes():
		if err := c.checkConflict(image, c.owner.Owner); err != nil {
			return false, err
		}
		has, err := c.pool.HasClone(ctx, source.ID, cloneSnapshot(c.intent.ClaimUID), image.ID)
		// Without the snapshot, an earlier attempt has looked at it before it
		// removed that.
		whole = has || errors.Is(err, rbd.ErrImageNotFound)
		if err != nil && !whole {
			return false, err
		}
	case c.origin.isFresh(image, c.owner.Owner):
		// The source was grown before its snapshot was made.
	default:
		if err := c.checkConflict(image, c.owner.Owner); err != nil {
			return false, err
		}
		written, err := c.pool.Written(ctx, c.image)
		if err == nil && written {
			err = fmt.Errorf("image %q in pool %q exists and %w: it has data: rename or remove it",
				c.image, c.location.Pool, errImageConflict)
		}
		if err != nil {
			return false, err
		}
	}
	if whole {
		return true, nil
	}
	klog.FromContext(ctx).Info("Removing what is left of a half-made clone", "image", c.image)
	return false, removeIfThere(ctx, c.pool, c.image)
}

// make makes the image from a snapshot of the source.
func (c cloning) make(ctx context.Context, source rbd.Image) (rbd.Image, error) {
	snapshot := cloneSnapshot(c.intent.ClaimUID)
	if err := c.pool.SnapshotImage(ctx, source.ID, snapshot); err != nil {
		return rbd.Image{}, err
	}
	spec := rbd.CloneSpec{Source: c.source.record.Image, Snapshot: snapshot, DataPool: c.params.DataPool}
	err := c.pool.CloneImage(ctx, c.image, spec)
	if errors.Is(err, rbd.ErrImageExists) {
		// Remains, if nothing can be opened. Any other image is looked at by the
		// next attempt.
		if _, lookErr := c.pool.Image(ctx, c.image); errors.Is(lookErr, rbd.ErrImageNotFound) {
			klog.FromContext(ctx).V(2).Info("Removing what is left of a half-made image", "image", c.image)
			if err = removeIfThere(ctx, c.pool, c.image); err == nil {
				err = c.pool.CloneImage(ctx, c.image, spec)
			}
		}
	}
	if err == nil {
		// The snapshot may be of an earlier attempt, and the source have had
		// another size then.
		return c.pool.Image(ctx, c.image)
	}
	if !errors.Is(err, rbd.ErrTimeout) && !errors.Is(err, rbd.ErrConnectionLost) {
		// As good as can be: the intent says where it is otherwise.
		if err := c.pool.RemoveSnapshot(ctx, source.ID, snapshot); err != nil {
			klog.FromContext(ctx).V(2).Info("The snapshot for a clone could not be removed, trying again later",
				"image", c.source.record.Image, "snapshot", snapshot, "err", err)
		}
	}
	return rbd.Image{}, err
}

// finish does what is left once the image is there. What says whose it is comes
// last, but for the flattening.
func (c cloning) finish(ctx context.Context, source, image rbd.Image) error {
	if err := c.pool.RemoveSnapshot(ctx, source.ID, cloneSnapshot(c.intent.ClaimUID)); err != nil {
		return err
	}
	if image.SizeBytes > c.wantedBytes() {
		// The source was grown since it was looked at.
		if err := removeIfThere(ctx, c.pool, c.image); err != nil {
			return err
		}
		return c.source.tooLarge(*resource.NewQuantity(int64(image.SizeBytes), resource.BinarySI)) // #nosec G115 -- no image is that large
	}
	if image.SizeBytes < c.wantedBytes() {
		if err := c.pool.GrowImage(ctx, c.image, c.wantedBytes()); err != nil {
			return err
		}
	}
	entries := c.owner.marks()
	flatten, err := c.toFlatten(ctx, source)
	if err != nil {
		return err
	}
	if flatten {
		entries[metaFlattening] = flatteningPending
	}
	if err := c.pool.SetMetadata(ctx, c.image, entries); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Image cloned", "image", c.image, "source", c.source.record.Image)
	image.Metadata = entries
	return c.flattened(ctx, image)
}

// toFlatten reports whether the clone depends on too many images, or its source has
// too many clones.
func (c cloning) toFlatten(ctx context.Context, source rbd.Image) (bool, error) {
	if len(source.Snapshots)+source.Kept >= manySnapshots || c.config.MaxCloneDepth == 0 {
		return true, nil
	}
	if source.Parent == "" {
		return false, nil
	}
	depth, err := c.pool.CloneDepth(ctx, c.image)
	return depth > c.config.MaxCloneDepth, err
}

// flattened returns an error while the clone is to be flattened.
func (c cloning) flattened(ctx context.Context, image rbd.Image) error {
	switch {
	case image.Metadata[metaFlattening] != flatteningPending:
		return nil
	case image.Parent != "":
		return c.flattener.request(c.key(), c.location, image.Parent)
	}
	return c.pool.SetMetadata(ctx, c.image, map[string]string{metaFlattening: flatteningDone})
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
