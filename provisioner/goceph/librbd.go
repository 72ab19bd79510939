// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// radosPool is an open pool.
type radosPool struct {
	conn *rados.Conn
	io   *rados.IOContext
	name string
}

func (p *radosPool) id() int64 { return p.io.GetPoolID() }

func (p *radosPool) close() { p.io.Destroy() }

func (p *radosPool) CreateImage(_ context.Context, name string, spec rbd.ImageSpec) error {
	options, err := p.imageOptions(spec.DataPool)
	if err != nil {
		return err
	}
	defer options.Destroy()
	err = librbd.CreateImage(p.io, name, spec.SizeBytes, options)
	if errors.Is(err, librbd.ErrNotFound) {
		// The pool was open, so it has been deleted since.
		return rbd.ErrPoolNotFound
	}
	return err
}

// imageOptions returns the options of the images made here. The caller must Destroy them.
func (p *radosPool) imageOptions(dataPool string) (*librbd.ImageOptions, error) {
	if err := p.checkDataPool(dataPool); err != nil {
		return nil, fmt.Errorf("data pool %q: %w", dataPool, translate(err, rbd.ErrPoolNotFound))
	}
	const order = 22 // objects of 4 MiB
	options := librbd.NewRbdImageOptions()
	if err := errors.Join(
		options.SetUint64(librbd.ImageOptionFormat, 2),
		options.SetUint64(librbd.ImageOptionFeatures, librbd.FeatureLayering),
		// Ceph's own defaults, set even if empty: for what is missing or 0, librbd takes
		// the defaults of the pool's or the cluster's configuration.
		options.SetUint64(librbd.ImageOptionOrder, order),
		options.SetUint64(librbd.ImageOptionStripeUnit, 1<<order),
		options.SetUint64(librbd.ImageOptionStripeCount, 1),
		options.SetString(librbd.ImageOptionDataPool, dataPool),
		options.SetString(librbd.ImageOptionJournalPool, ""),
	); err != nil {
		options.Destroy()
		return nil, err
	}
	return options, nil
}

// checkDataPool is here because librbd's ENOENT would not say which of the two pools is
// missing, and librbd makes images for users who may do nothing with the data, not even
// remove it.
func (p *radosPool) checkDataPool(name string) error {
	if name == "" {
		return nil
	}
	if err := checkText(name); err != nil {
		return err
	}
	io, err := p.conn.OpenIOContext(name)
	if err != nil {
		return err
	}
	defer io.Destroy()
	// Any object will do: a user who may use only other pools can't read it.
	_, err = io.Stat("rbd_directory")
	return ignore(err, rados.ErrNotFound)
}

func (p *radosPool) Image(_ context.Context, name string) (rbd.Image, error) {
	// Read-only, so that this client does not become a watcher itself.
	image, err := librbd.OpenImageReadOnly(p.io, name, librbd.NoSnapshot)
	if err != nil {
		return rbd.Image{}, err
	}
	defer func() { _ = image.Close() }() // only read
	info, err := p.describe(image)
	if errors.Is(err, librbd.ErrNotFound) {
		// The image could be opened: a part of it, or its data pool, was removed since.
		return rbd.Image{}, errors.New("it changed while it was looked at")
	}
	return info, err
}

func (p *radosPool) describe(image *librbd.Image) (info rbd.Image, err error) {
	if info.ID, err = image.GetId(); err != nil {
		return rbd.Image{}, err
	}
	if info.SizeBytes, err = image.GetSize(); err != nil {
		return rbd.Image{}, err
	}
	if info.Features, info.DataPool, err = p.features(image); err != nil {
		return rbd.Image{}, err
	}
	if info.Metadata, err = image.ListMetadata(); err != nil {
		return rbd.Image{}, err
	}
	watchers, err := image.ListWatchers()
	if err != nil {
		return rbd.Image{}, err
	}
	for _, w := range watchers {
		info.Watchers = append(info.Watchers, w.Addr)
	}
	slices.Sort(info.Watchers)
	if err = errors.Join(p.listSnapshots(image, &info), p.listHolds(image, &info)); err != nil {
		return rbd.Image{}, err
	}
	parent, err := parentOf(image)
	if parent != nil {
		info.Parent = parent.Image.ImageID
	}
	return info, err
}

// features returns the names of an image's features, and its data pool's name or "".
func (p *radosPool) features(image *librbd.Image) (names []string, dataPool string, err error) {
	bits, err := image.GetFeatures()
	if err != nil {
		return nil, "", err
	}
	set := librbd.FeatureSet(bits)
	names = set.Names()
	// A feature that go-ceph does not know must not look like none.
	known := uint64(librbd.FeatureSetFromNames(names))
	for bit := range 64 {
		if unknown := bits &^ known; unknown&(1<<bit) != 0 {
			names = append(names, fmt.Sprintf("feature-%d", bit))
		}
	}
	slices.Sort(names)
	if bits&librbd.FeatureDataPool == 0 {
		return names, "", nil
	}
	id, err := image.GetDataPoolID()
	if err != nil {
		return nil, "", err
	}
	dataPool, err = p.conn.GetPoolByID(id)
	return names, dataPool, err
}

// lookInto is how many objects of an image Written checks: 4 GiB as a rule.
const lookInto = 1024

func (p *radosPool) Written(_ context.Context, name string) (bool, error) {
	image, err := librbd.OpenImageReadOnly(p.io, name, librbd.NoSnapshot)
	if err != nil {
		return false, err
	}
	defer func() { _ = image.Close() }() // only read
	info, err := image.Stat()
	if err != nil || info.Size == 0 {
		return false, err
	}
	written := false
	// Check whether objects exist, not what they contain.
	err = image.DiffIterate(librbd.DiffIterateConfig{
		SnapName:      librbd.NoSnapshot,
		Length:        min(info.Size, lookInto*info.Obj_size),
		IncludeParent: librbd.ExcludeParent,
		WholeObject:   librbd.EnableWholeObject,
		Callback: func(_, _ uint64, exists int, _ any) int {
			written = written || exists != 0
			return 0
		},
	})
	return written, err
}

func (p *radosPool) RemoveImage(ctx context.Context, name string) error {
	id, idErr := p.imageID(name)
	// librbd moves an image to the trash before it removes it.
	err := p.intoTrash(name, func() error { return librbd.RemoveImage(p.io, name) })
	if err != nil || idErr != nil {
		return err
	}
	// The pool's option rbd_move_to_trash_on_remove makes librbd leave it there.
	return ignore(p.RemoveTrashed(ctx, id), librbd.ErrNotFound)
}

func (p *radosPool) GrowImage(_ context.Context, name string, sizeBytes uint64) error {
	image, err := librbd.OpenImage(p.io, name, librbd.NoSnapshot)
	return change(image, err, func() error {
		size, err := image.GetSize()
		if err != nil || size >= sizeBytes {
			return err
		}
		// Not Resize: it would shrink an image that another client has grown since the
		// size was read.
		const allowShrink = false
		return image.Resize2(sizeBytes, allowShrink, func(_, _ uint64, _ any) int { return 0 }, nil)
	})
}

// change runs f, which changes an image, and closes the image. err is from opening it.
func change(image *librbd.Image, err error, f func() error) error {
	if err != nil {
		return err
	}
	// If this fails, the change is stored all the same, and the cluster ends the watch that
	// opening began by itself.
	defer func() { _ = image.Close() }()
	return f()
}
