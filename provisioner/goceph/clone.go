// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"errors"
	"fmt"
	"slices"

	librbd "github.com/ceph/go-ceph/rbd"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// cloneFormat is the clone format in which a snapshot needs no protection, and can be
// removed before its clones.
const cloneFormat = 2

func (p *radosPool) SnapshotImage(_ context.Context, id, snapshot string) error {
	if err := checkSnapshot(snapshot); err != nil {
		return err
	}
	image, err := librbd.OpenImageById(p.io, id, librbd.NoSnapshot)
	return change(image, err, func() error {
		if _, err := image.CreateSnapshot(snapshot); !errors.Is(err, librbd.ErrExist) {
			return err
		}
		return nil
	})
}

func (p *radosPool) CloneImage(_ context.Context, name string, spec rbd.CloneSpec) error {
	if err := errors.Join(checkName(spec.Source), checkSnapshot(spec.Snapshot)); err != nil {
		return err
	}
	options, err := p.imageOptions(spec.DataPool)
	if err != nil {
		return err
	}
	defer options.Destroy()
	if err := options.SetUint64(librbd.ImageOptionCloneFormat, cloneFormat); err != nil {
		return err
	}
	return librbd.CloneImage(p.io, spec.Source, spec.Snapshot, p.io, name, options)
}

func (p *radosPool) RemoveSnapshot(_ context.Context, id, snapshot string) error {
	if err := checkSnapshot(snapshot); err != nil {
		return err
	}
	image, err := librbd.OpenImageById(p.io, id, librbd.NoSnapshot)
	if errors.Is(err, librbd.ErrNotFound) {
		return nil
	}
	return change(image, err, func() error {
		if err := image.GetSnapshot(snapshot).Remove(); !errors.Is(err, librbd.ErrNotFound) {
			return err
		}
		return nil
	})
}

func (p *radosPool) Snapshots(_ context.Context, id string) ([]string, error) {
	image, err := librbd.OpenImageByIdReadOnly(p.io, id, librbd.NoSnapshot)
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close() }() // only read
	names, _, err := listSnapshots(image)
	return names, err
}

// listSnapshots returns the sorted names of an image's snapshots, and how many more Ceph
// keeps for clones.
func listSnapshots(image *librbd.Image) (names []string, kept int, err error) {
	all, err := image.GetSnapshotNames()
	if err != nil {
		return nil, 0, err
	}
	for _, one := range all {
		namespace, err := image.GetSnapNamespaceType(one.Id)
		if err != nil {
			return nil, 0, err
		}
		if namespace == librbd.SnapNamespaceTypeTrash {
			kept++
			continue
		}
		names = append(names, one.Name)
	}
	slices.Sort(names)
	return names, kept, nil
}

func (p *radosPool) HasClone(_ context.Context, id, snapshot, clone string) (bool, error) {
	if err := checkSnapshot(snapshot); err != nil {
		return false, err
	}
	image, err := librbd.OpenImageByIdReadOnly(p.io, id, snapshot)
	if err != nil {
		return false, err
	}
	defer func() { _ = image.Close() }() // only read
	children, err := image.ListChildrenAttributes()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(children, func(child librbd.ImageSpec) bool {
		return child.ImageID == clone && int64(child.PoolID) == p.id() // #nosec G115 -- pools' IDs are small
	}), nil
}

// parentOf returns the parent of a clone, or nil for an image without one.
func parentOf(image *librbd.Image) (*librbd.ParentInfo, error) {
	parent, err := image.GetParent()
	if errors.Is(err, librbd.ErrNotFound) {
		return nil, nil
	}
	return parent, err
}

func (p *radosPool) CloneDepth(_ context.Context, name string) (int, error) {
	image, err := librbd.OpenImageReadOnly(p.io, name, librbd.NoSnapshot)
	if err != nil {
		return 0, err
	}
	for depth := 0; ; depth++ {
		parent, err := parentOf(image)
		_ = image.Close() // only read
		if err != nil {
			return 0, err
		}
		if parent == nil {
			return depth, nil
		}
		if image, err = p.openParent(parent); err != nil {
			return 0, err
		}
	}
}

// openParent opens the snapshot that an image was cloned from. Its image may be in the
// trash, and in another pool if another program made the clone.
func (p *radosPool) openParent(parent *librbd.ParentInfo) (*librbd.Image, error) {
	io, err := p.conn.OpenIOContext(parent.Image.PoolName)
	if err != nil {
		return nil, err
	}
	// The open image keeps what it needs of io.
	defer io.Destroy()
	io.SetNamespace(parent.Image.PoolNamespace)
	image, err := librbd.OpenImageByIdReadOnly(io, parent.Image.ImageID, librbd.NoSnapshot)
	if err == nil {
		if err = image.SetSnapByID(parent.Snap.ID); err != nil {
			_ = image.Close() // only read
		}
	}
	if errors.Is(err, librbd.ErrNotFound) {
		return nil, fmt.Errorf("its parent with the ID %q changed while it was looked at", parent.Image.ImageID)
	}
	return image, err
}

func (p *radosPool) FlattenImage(_ context.Context, name string) error {
	image, err := librbd.OpenImage(p.io, name, librbd.NoSnapshot)
	return change(image, err, func() error {
		parent, err := parentOf(image)
		if err != nil || parent == nil {
			return err
		}
		return image.Flatten()
	})
}

// checkSnapshot refuses a name that a C function would read as another one.
func checkSnapshot(name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}
