// SPDX-License-Identifier: Apache-2.0

// Package image makes the image of a volume, finds the one that an earlier attempt
// made, and removes what an attempt left. It knows what an image has to be like to be
// the wanted one, and never touches any other. It knows nothing of Kubernetes but the
// names that it writes into images.
package image

import (
	"context"
	"errors"
	"maps"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// ErrConflict says that an image of the wanted name is not the wanted one. It was left
// as it is.
var ErrConflict = errors.New("is not the one for this claim")

// Wanted is the image that a claim is to get.
type Wanted struct {
	// Image is its name and its pool.
	Image volume.ImageID
	// SizeBytes is its size.
	SizeBytes uint64
	// DataPool is the pool for its data; empty for the pool of the image itself.
	DataPool string
	// Owner is whom it is to belong to.
	Owner volume.Owner
	// ClaimUID is that of the claim. It names the snapshot that a clone is made from.
	ClaimUID string
	// Source is what it is to be a clone of; nil for an empty image.
	Source *Source
}

// Source is what a clone is made from: the volume of another claim.
type Source struct {
	// Claim is the claim's name, for people.
	Claim string
	// Volume is the name of the volume, Image that of its image, FSID its cluster,
	// where the volume says that.
	Volume, Image, FSID string
	// FSType is the volume's file system and CapacityBytes its capacity.
	FSType        string
	CapacityBytes int64
	// ID is that of the image. Only Ceph knows it: it is empty until it was asked.
	ID string
	// Err is what keeps it from being cloned; all but Claim is unknown then.
	Err error
}

// Made is an image that is there.
type Made struct {
	// Source is the volume that it is a clone of, as it was when it was cloned; nil for
	// an image that is no clone, or where nobody knows any more.
	Source *Source
	// Flatten says that it must be flattened before its claim may have it, and Parent
	// the ID of the image that it depends on until then.
	Flatten bool
	Parent  string
}

// Intent returns what is noted about a wanted image.
func (w Wanted) Intent() journal.Intent {
	in := journal.Intent{
		Image:     w.Image.Name,
		Namespace: w.Owner.Namespace,
		Claim:     w.Owner.Claim,
		ClaimUID:  w.ClaimUID,
		Volume:    w.Owner.Volume,
		SizeBytes: int64(w.SizeBytes), // #nosec G115 -- no image is that large
		DataPool:  w.DataPool,
	}
	if s := w.Source; s != nil {
		in.SourceID, in.SourceVolume = s.ID, s.Volume
		in.SourceFSType, in.SourceBytes = s.FSType, s.CapacityBytes
	}
	return in
}

// FromIntent returns the image that an intent in a pool is about, where identity and
// cluster are those of the provisioner.
func FromIntent(in journal.Intent, pool volume.PoolID, identity, cluster string) Wanted {
	w := Wanted{
		Image:     pool.Image(in.Image),
		SizeBytes: uint64(in.SizeBytes), // #nosec G115 -- no image has a negative size
		DataPool:  in.DataPool,
		Owner: volume.Owner{
			Volume: in.Volume, Identity: identity, Cluster: cluster, Claim: in.Claim, Namespace: in.Namespace,
		},
		ClaimUID: in.ClaimUID,
		Source:   sourceOf(in),
	}
	if w.DataPool == pool.Pool {
		w.DataPool = "" // counts as none
	}
	return w
}

// sourceOf returns what the image of an intent is a clone of; nil for no clone.
func sourceOf(in journal.Intent) *Source {
	if in.SourceID == "" {
		return nil
	}
	return &Source{ID: in.SourceID, Volume: in.SourceVolume, FSType: in.SourceFSType, CapacityBytes: in.SourceBytes}
}

// Pool is what a Maker needs of one.
type Pool interface {
	rbd.Images
	rbd.Clones
	rbd.Notes
}

// Maker makes images in one pool. Who calls it holds the lock of the wanted image: see
// journal.Locks.
type Maker struct {
	Pool    Pool
	Journal *journal.Journal
	// MaxCloneDepth is on how many images a clone may depend, one through the other;
	// one that depends on more is to be flattened. 0 has every clone flattened.
	MaxCloneDepth int
}

// Make makes the image, or finds the one that an earlier attempt made, or goes on where
// that was cut off. Its size is then the wanted one, and its metadata says whose it is.
// The intent is noted before. Errors: ErrConflict, and those of the calls to the pool.
func (m Maker) Make(ctx context.Context, want Wanted) (Made, error) {
	if want.Source != nil {
		return cloning{m, want}.run(ctx)
	}
	if err := m.Journal.Intents.Write(ctx, m.Pool, want.Intent()); err != nil {
		return Made{}, err
	}
	spec := rbd.ImageSpec{SizeBytes: want.SizeBytes, DataPool: want.DataPool}
	err := m.Pool.CreateImage(ctx, want.Image.Name, spec)
	if errors.Is(err, rbd.ErrImageExists) {
		found, err := m.adopt(ctx, want)
		if err != nil || found {
			return Made{}, err
		}
		// What held the name were remains of an attempt that was cut off, gone now.
		err = m.Pool.CreateImage(ctx, want.Image.Name, spec)
		if err != nil {
			return Made{}, err
		}
		return Made{}, m.mark(ctx, want)
	}
	if err != nil {
		return Made{}, err
	}
	return Made{}, m.mark(ctx, want)
}

// Find is for a claim that does not want its volume any more: it reports whether an
// earlier attempt made the image, and makes none. The intent is noted again then: who
// made it has noted it, unless that was a version without a journal.
func (m Maker) Find(ctx context.Context, want Wanted) (made Made, found bool, err error) {
	found, err = m.adopt(ctx, want)
	if errors.Is(err, ErrConflict) {
		return Made{}, false, nil // nothing of ours is there
	}
	if err != nil || !found {
		return Made{}, false, err
	}
	if want.Source != nil {
		earlier, err := m.Journal.Intents.Of(ctx, m.Pool, want.Image.Name)
		if err != nil {
			return Made{}, true, err
		}
		made.Source = sourceOf(earlier)
		want.Source = made.Source
	}
	return made, true, m.Journal.Intents.Write(ctx, m.Pool, want.Intent())
}

// mark writes into the image whose it is. A crash before it leaves an image without a
// mark, which the next attempt recognises by its name.
func (m Maker) mark(ctx context.Context, want Wanted) error {
	if err := m.Pool.SetMetadata(ctx, want.Image.Name, want.Owner.Marks()); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Image created", "image", want.Image.Name)
	return nil
}

// adopt looks at what holds the image's name. It reports whether that is the wanted
// image, completing its metadata where an attempt was cut off; remains of an image it
// removes.
func (m Maker) adopt(ctx context.Context, want Wanted) (bool, error) {
	name := want.Image.Name
	image, err := m.Pool.Image(ctx, name)
	if errors.Is(err, rbd.ErrImageNotFound) {
		klog.FromContext(ctx).V(2).Info("Removing what is left of a half-made image", "image", name)
		return false, RemoveIfThere(ctx, m.Pool, name)
	}
	if err != nil {
		return false, err
	}
	if err := want.check(image); err != nil {
		return false, err
	}
	if image.Metadata[metaFlattening] == flatteningPending {
		return false, want.conflict("it was to be flattened") // nobody has it yet
	}
	if marked(image, want.Owner) {
		return true, nil
	}
	return true, m.mark(ctx, want)
}

// marked reports whether an image's metadata says all of whose it is.
func marked(image rbd.Image, owner volume.Owner) bool {
	both := maps.Clone(image.Metadata)
	if both == nil {
		return false
	}
	maps.Copy(both, owner.Marks())
	return maps.Equal(both, image.Metadata)
}

// Remover removes images by name; rbd.Pool is one.
type Remover interface {
	RemoveImage(ctx context.Context, name string) error
}

// RemoveIfThere removes an image, or what is left of one that can't be opened. That
// nothing is there is no error.
//
// A removal that was cut off leaves an image in the pool's trash, and so the name free
// for another one. Removing by name takes that other one first, and what is in the
// trash only when nothing has the name any more: hence twice.
func RemoveIfThere(ctx context.Context, pool Remover, name string) error {
	for range 2 {
		err := pool.RemoveImage(ctx, name)
		if errors.Is(err, rbd.ErrImageNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}
