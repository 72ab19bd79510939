// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// CloneDepthLimit is the longest chain of images, each a clone of the next, that Linux
// can map. Source: RBD_MAX_PARENT_CHAIN_LEN in drivers/block/rbd.c.
const CloneDepthLimit = 16

const (
	// cloneSnapshotPrefix starts the names of snapshots that clones are made from. Such
	// a snapshot stays after its clone was made only if the attempt was cut off.
	cloneSnapshotPrefix = "rbd_provisioner.clone."
	// snapshotsOfLinux is how many snapshots an image may have so that Linux can map it,
	// less some room for people's own. Source: RBD_MAX_SNAP_COUNT, 510, in
	// drivers/block/rbd_types.h. From manySnapshots on, clones of an image are flattened,
	// so that it keeps no snapshot for them.
	snapshotsOfLinux = 480
	manySnapshots    = 400
	// sourceWait is how long a clone occupies a worker to wait for others of its source.
	sourceWait = 2 * time.Second
)

// metaFlattening is a key of a clone's metadata. It says that the clone must be flattened
// before its claim gets the volume, or that it was.
const (
	metaFlattening    = "rbd.ceph.com/flattening"
	flatteningPending = "pending"
	flatteningDone    = "done"
)

// CloneSnapshot returns the name of the snapshot for a claim's clone.
func CloneSnapshot(claimUID string) string { return cloneSnapshotPrefix + claimUID }

// String returns the first words of errors about the source.
func (s *Source) String() string { return fmt.Sprintf("its source, claim %q,", s.Claim) }

// TooLarge returns the error about a source with more bytes than the claim requests.
func (s *Source) TooLarge(bytes int64) error {
	return fmt.Errorf("%s has %s, more than the claim requests: request at least that", s, resource.NewQuantity(bytes, resource.BinarySI))
}

// cloning makes one clone.
type cloning struct {
	Maker
	want Wanted
}

// run makes the clone, or continues where an earlier attempt was cut off. The order of its
// steps makes it safe to kill the process between any two of them.
func (c cloning) run(ctx context.Context) (Made, error) {
	earlier, err := c.Journal.Intents.Of(ctx, c.Pool, c.want.Image.Name)
	if err != nil {
		return Made{}, err
	}
	image, err := c.Pool.Image(ctx, c.want.Image.Name)
	found := err == nil
	if err != nil && !errors.Is(err, rbd.ErrImageNotFound) {
		return Made{}, err
	}
	if found && c.want.isMarked(image) && image.Metadata[volume.MetaIdentity] == c.want.Owner.Identity {
		return c.again(ctx, image, earlier)
	}
	if c.want.Source.Err != nil {
		return Made{}, c.want.Source.Err
	}
	// The lock keeps away a deletion of the source, and other clones of it: for each
	// snapshot, all clients that have the image open must answer.
	unlock, locked := c.Journal.Locks.LockWithin(c.want.Image.PoolID.Image(c.want.Source.Image), sourceWait)
	if !locked {
		return Made{}, fmt.Errorf("other clones of %s are being made, or it is being deleted: will retry, nothing needs to be done", c.want.Source)
	}
	defer unlock()
	source, err := c.lookAtSource(ctx)
	if err != nil {
		return Made{}, err
	}
	withID := *c.want.Source // a copy: the caller's stays as it is
	withID.ID = source.ID
	c.want.Source = &withID
	if earlier.SourceID != "" && earlier.SourceID != source.ID {
		if found, err = c.forgetEarlier(ctx, earlier, image, found); err != nil {
			return Made{}, err
		}
	}
	if err := c.Journal.Intents.Write(ctx, c.Pool, c.want.Intent()); err != nil {
		return Made{}, err
	}
	if found {
		if found, err = c.isWhole(ctx, source, image); err != nil {
			return Made{}, err
		}
	}
	if !found {
		if image, err = c.clone(ctx, source); err != nil {
			return Made{}, err
		}
	}
	return c.finish(ctx, source, image)
}

// again returns a clone that was made earlier. Its source may be gone by now, or another
// image may have the source's name, so again takes the source from the intent.
func (c cloning) again(ctx context.Context, image rbd.Image, earlier journal.Intent) (Made, error) {
	if err := c.want.check(image); err != nil {
		return Made{}, err
	}
	if !marked(image, c.want.Owner) { // by an earlier version
		if err := c.Pool.SetMetadata(ctx, c.want.Image.Name, c.want.Owner.Marks()); err != nil {
			return Made{}, err
		}
	}
	source := c.want.Source
	if was := sourceOf(earlier); was != nil && was.Volume != "" {
		source = was
	} else if source.Err != nil {
		source = nil
	}
	return c.made(ctx, image, source)
}

// forgetEarlier removes what an earlier attempt made when the source's claim had another
// image. It reports whether the wanted image is still there.
func (c cloning) forgetEarlier(ctx context.Context, earlier journal.Intent, image rbd.Image, found bool) (bool, error) {
	before := c.want
	before.Source = sourceOf(earlier)
	if found && before.isFresh(image) {
		if err := RemoveIfThere(ctx, c.Pool, c.want.Image.Name); err != nil {
			return true, err
		}
		found = false
	}
	return found, c.Pool.RemoveSnapshot(ctx, earlier.SourceID, CloneSnapshot(c.want.ClaimUID))
}

// lookAtSource returns the source's image if it can be cloned.
func (c cloning) lookAtSource(ctx context.Context) (rbd.Image, error) {
	s, fsid := c.want.Source, c.want.Image.FSID
	if s.FSID != "" && s.FSID != fsid {
		return rbd.Image{}, fmt.Errorf("%s is in Ceph cluster %q: use a StorageClass with its monitors, since %q is another one", s, s.FSID, fsid)
	}
	image, err := c.Pool.Image(ctx, s.Image)
	if err != nil {
		return image, fmt.Errorf("%s can't be cloned: %w", s, err)
	}
	owner := volume.Owner{Volume: s.Volume, Identity: c.want.Owner.Identity, Cluster: c.want.Owner.Cluster}
	switch whose := volume.Foreign(image.Metadata, owner); {
	case whose != "":
		err = fmt.Errorf("%s has the image %q, which is not its volume's: %s: see the events of volume %q", s, s.Image, whose, s.Volume)
	case image.SizeBytes > c.want.SizeBytes:
		err = s.TooLarge(int64(image.SizeBytes)) // #nosec G115 -- no image is that large
	case len(image.Snapshots)+image.Kept >= snapshotsOfLinux:
		err = fmt.Errorf("%s has nearly as many snapshots and clones as Linux can map an image with: "+
			"it will be cloned once some are removed or flattened", s)
	}
	return image, err
}

// isWhole looks at an unmarked image that has the clone's name. It reports whether that is
// a complete clone, ready for the next steps, and removes the leftovers of a half-made
// one. Any other image is an error and stays as it is.
func (c cloning) isWhole(ctx context.Context, source, image rbd.Image) (bool, error) {
	fresh := c.want.isFresh(image)
	// If the source grew before its snapshot was made, the clone is too large, and goes.
	tooLarge := fresh && image.SizeBytes > c.want.SizeBytes
	if err := c.want.check(image); err != nil && !tooLarge {
		return false, err
	}
	switch {
	case tooLarge:
	case fresh:
		whole, err := c.Pool.HasClone(ctx, source.ID, CloneSnapshot(c.want.ClaimUID), image.ID)
		// If the snapshot is gone, the attempt that removed it had checked the clone before.
		if whole || errors.Is(err, rbd.ErrImageNotFound) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	default:
		written, err := c.Pool.Written(ctx, c.want.Image.Name)
		if err == nil && written {
			err = c.want.conflict("it has data" + remedy)
		}
		if err != nil {
			return false, err
		}
	}
	klog.FromContext(ctx).Info("Removing what is left of a half-made clone", "image", c.want.Image.Name)
	return false, RemoveIfThere(ctx, c.Pool, c.want.Image.Name)
}

// clone makes the image from a snapshot of the source.
func (c cloning) clone(ctx context.Context, source rbd.Image) (rbd.Image, error) {
	name, snapshot := c.want.Image.Name, CloneSnapshot(c.want.ClaimUID)
	if err := c.Pool.SnapshotImage(ctx, source.ID, snapshot); err != nil {
		return rbd.Image{}, err
	}
	spec := rbd.CloneSpec{Source: c.want.Source.Image, Snapshot: snapshot, DataPool: c.want.DataPool}
	err := c.Pool.CloneImage(ctx, name, spec)
	if errors.Is(err, rbd.ErrImageExists) {
		// If the image can't be opened, the name belongs to leftovers. The next attempt
		// looks at any other image.
		if _, lookErr := c.Pool.Image(ctx, name); errors.Is(lookErr, rbd.ErrImageNotFound) {
			klog.FromContext(ctx).V(2).Info("Removing what is left of a half-made image", "image", name)
			if err = RemoveIfThere(ctx, c.Pool, name); err == nil {
				err = c.Pool.CloneImage(ctx, name, spec)
			}
		}
	}
	if err == nil {
		// The snapshot may be older, when the source had another size: read the clone's.
		return c.Pool.Image(ctx, name)
	}
	if !errors.Is(err, rbd.ErrTimeout) && !errors.Is(err, rbd.ErrConnectionLost) {
		// Best effort: the intent still says where the snapshot is.
		if err := c.Pool.RemoveSnapshot(ctx, source.ID, snapshot); err != nil {
			klog.FromContext(ctx).V(2).Info("The snapshot for a clone could not be removed, will retry",
				"image", c.want.Source.Image, "snapshot", snapshot, "err", err)
		}
	}
	return rbd.Image{}, err
}

// finish does the remaining steps. Only flattening comes after the owner metadata.
func (c cloning) finish(ctx context.Context, source, image rbd.Image) (Made, error) {
	name := c.want.Image.Name
	if err := c.Pool.RemoveSnapshot(ctx, source.ID, CloneSnapshot(c.want.ClaimUID)); err != nil {
		return Made{}, err
	}
	if image.SizeBytes > c.want.SizeBytes {
		// The source grew before its snapshot was made, after lookAtSource.
		if err := RemoveIfThere(ctx, c.Pool, name); err != nil {
			return Made{}, err
		}
		return Made{}, c.want.Source.TooLarge(int64(image.SizeBytes)) // #nosec G115 -- no image is that large
	}
	if image.SizeBytes < c.want.SizeBytes {
		if err := c.Pool.GrowImage(ctx, name, c.want.SizeBytes); err != nil {
			return Made{}, err
		}
	}
	flatten, err := c.mustFlatten(ctx, source)
	if err != nil {
		return Made{}, err
	}
	image.Metadata = c.want.Owner.Marks()
	if flatten {
		image.Metadata[metaFlattening] = flatteningPending
	}
	if err := c.Pool.SetMetadata(ctx, name, image.Metadata); err != nil {
		return Made{}, err
	}
	klog.FromContext(ctx).Info("Image cloned", "image", name, "source", c.want.Source.Image)
	return c.made(ctx, image, c.want.Source)
}

// mustFlatten reports whether the clone depends on too many images, or its source has too
// many snapshots and clones.
func (c cloning) mustFlatten(ctx context.Context, source rbd.Image) (bool, error) {
	if len(source.Snapshots)+source.Kept >= manySnapshots || c.MaxCloneDepth == 0 {
		return true, nil
	}
	if source.Parent == "" {
		return false, nil
	}
	depth, err := c.Pool.CloneDepth(ctx, c.want.Image.Name)
	return depth > c.MaxCloneDepth, err
}

// made returns a clone that is there, and notes in its metadata if it was flattened.
func (c cloning) made(ctx context.Context, image rbd.Image, source *Source) (Made, error) {
	switch {
	case image.Metadata[metaFlattening] != flatteningPending:
		return Made{Source: source}, nil
	case image.Parent != "":
		return Made{Source: source, Flatten: true, Parent: image.Parent}, nil
	}
	done := map[string]string{metaFlattening: flatteningDone}
	return Made{Source: source}, c.Pool.SetMetadata(ctx, c.want.Image.Name, done)
}

// RemoveCloneSnapshots removes the snapshots that attempts to clone an image left, and
// returns the names of its other snapshots.
func RemoveCloneSnapshots(ctx context.Context, pool rbd.Clones, id string, snapshots []string) (others []string, err error) {
	for _, name := range snapshots {
		if !strings.HasPrefix(name, cloneSnapshotPrefix) {
			others = append(others, name)
			continue
		}
		if err := pool.RemoveSnapshot(ctx, id, name); err != nil {
			return nil, err
		}
	}
	return others, nil
}
