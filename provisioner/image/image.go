// SPDX-License-Identifier: Apache-2.0

// Package image makes the image of a volume, finds the one that an earlier attempt made,
// and removes an attempt's leftovers. It recognises the wanted image, and touches no other.
// Of Kubernetes it knows only the names that it writes into images.
package image

import (
	"context"
	"errors"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// ErrConflict means that an image has the wanted name, but is not the wanted one. It stays.
var ErrConflict = errors.New("is not the one for this claim")

// Wanted is the image that a claim should get.
type Wanted struct {
	Image     volume.ImageID
	SizeBytes uint64
	// DataPool is the pool for its data; empty for the pool of the image itself.
	DataPool string
	Owner    volume.Owner
	// ClaimUID names the snapshot that a clone is made from.
	ClaimUID string
	// Source is what to clone; nil for an empty image.
	Source *Source
}

// Source is the volume of another claim that a clone is made from.
type Source struct {
	// Claim is the claim's name, for people.
	Claim string
	// Volume and Image are names; FSID is the Ceph cluster, empty if the volume does not say.
	Volume, Image, FSID string
	FSType              string
	CapacityBytes       int64
	// ID is the image's ID, which only Ceph knows; empty before Ceph was asked.
	ID string
	// Err says why it can't be cloned. Only Claim is surely known then.
	Err error
}

// Made is an existing image.
type Made struct {
	// Source is the volume that the image is a clone of, as it was then; nil if the image
	// is no clone, or its source is no longer known.
	Source *Source
	// Flatten says that the image must be flattened before its claim may have it. Parent
	// is the ID of the image that it depends on until then.
	Flatten bool
	Parent  string
}

// Intent returns the journal's intent for a wanted image.
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

// FromIntent returns the wanted image of an intent in a pool. identity and cluster are
// those of the provisioner.
func FromIntent(in journal.Intent, pool volume.PoolID, identity, cluster string) Wanted {
	w := Wanted{
		Image:     pool.Image(in.Image),
		SizeBytes: uint64(in.SizeBytes), // #nosec G115 -- no image has a negative size
		DataPool:  in.DataPool,
		Owner:     volume.Owner{Volume: in.Volume, Identity: identity, Cluster: cluster, Claim: in.Claim, Namespace: in.Namespace},
		ClaimUID:  in.ClaimUID,
		Source:    sourceOf(in),
	}
	if w.DataPool == pool.Pool {
		w.DataPool = "" // empty means the image's own pool
	}
	return w
}

// sourceOf returns the source of an intent's image; nil if that is no clone.
func sourceOf(in journal.Intent) *Source {
	if in.SourceID == "" {
		return nil
	}
	return &Source{ID: in.SourceID, Volume: in.SourceVolume, FSType: in.SourceFSType, CapacityBytes: in.SourceBytes}
}

// Maker makes images in one pool. Callers must lock the wanted image: see journal.Locks.
type Maker struct {
	Pool    rbd.Pool
	Journal *journal.Journal
	// MaxCloneDepth is how long the chain of images that a clone depends on may be; a
	// clone with a longer one must be flattened. 0 flattens every clone.
	MaxCloneDepth int
}

// Make makes the image, finds the one that an earlier attempt made, or continues where that
// was cut off. It writes the intent first. The image then has the wanted size and its owner
// metadata. Errors: ErrConflict, and those of the calls to the pool.
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
		var found bool
		if found, err = m.adopt(ctx, want); err != nil || found {
			return Made{}, err
		}
		// The leftovers that held the name are gone now.
		err = m.Pool.CreateImage(ctx, want.Image.Name, spec)
	}
	if err != nil {
		return Made{}, err
	}
	return Made{}, m.mark(ctx, want)
}

// Find reports whether an earlier attempt made the image, and makes none: it is for a claim
// that no longer wants its volume. If Find finds the image, it writes the intent again,
// because a version without a journal may have made the image.
func (m Maker) Find(ctx context.Context, want Wanted) (Made, bool, error) {
	found, err := m.adopt(ctx, want)
	if errors.Is(err, ErrConflict) {
		return Made{}, false, nil // the image is not ours
	}
	if err != nil || !found {
		return Made{}, false, err
	}
	if want.Source != nil {
		earlier, err := m.Journal.Intents.Of(ctx, m.Pool, want.Image.Name)
		if err != nil {
			return Made{}, true, err
		}
		want.Source = sourceOf(earlier)
	}
	return Made{Source: want.Source}, true, m.Journal.Intents.Write(ctx, m.Pool, want.Intent())
}

// mark writes the image's owner metadata. Until then, the image is recognised by its name.
func (m Maker) mark(ctx context.Context, want Wanted) error {
	if err := m.Pool.SetMetadata(ctx, want.Image.Name, want.Owner.Marks()); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Image created", "image", want.Image.Name)
	return nil
}

// adopt looks at what holds the image's name, and removes leftovers. It reports whether that
// is the wanted image, and completes its metadata if an attempt was cut off.
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
		return false, want.conflict("it was to be flattened") // no claim has it yet
	}
	if marked(image, want.Owner) {
		return true, nil
	}
	return true, m.mark(ctx, want)
}

// marked reports whether an image has all of the owner's metadata.
func marked(image rbd.Image, owner volume.Owner) bool {
	for key, value := range owner.Marks() {
		if image.Metadata[key] != value {
			return false
		}
	}
	return true
}

// RemoveIfThere removes an image, or the leftovers of one that can't be opened. A missing
// image is not an error.
//
// A removal that was cut off leaves its image in the pool's trash, and the name free for
// another one. Removal by name takes that other image first, and the one in the trash only
// once the name is free: hence twice.
func RemoveIfThere(ctx context.Context, pool rbd.Images, name string) error {
	err := pool.RemoveImage(ctx, name)
	if err == nil {
		err = pool.RemoveImage(ctx, name)
	}
	if errors.Is(err, rbd.ErrImageNotFound) {
		return nil
	}
	return err
}
