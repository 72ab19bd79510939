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
		_, err := image.CreateSnapshot(snapshot)
		return ignore(err, librbd.ErrExist)
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
	err = change(image, err, func() error { return image.GetSnapshot(snapshot).Remove() })
	return ignore(err, librbd.ErrNotFound)
}

func (p *radosPool) Snapshots(_ context.Context, id string) ([]string, error) {
	image, err := librbd.OpenImageByIdReadOnly(p.io, id, librbd.NoSnapshot)
	if err != nil {
		return nil, err
	}
	defer func() { _ = image.Close() }() // only read
	var info rbd.Image
	err = p.listSnapshots(image, &info)
	return info.Snapshots, err
}

// snapshotOfMirror is RBD_SNAP_NAMESPACE_TYPE_MIRROR of librbd.h, which go-ceph lacks.
const snapshotOfMirror librbd.SnapNamespaceType = 3

// listSnapshots sets what info has about an image's snapshots.
func (p *radosPool) listSnapshots(image *librbd.Image, info *rbd.Image) error {
	all, err := image.GetSnapshotNames()
	for _, one := range all {
		namespace, err := image.GetSnapNamespaceType(one.Id)
		if err != nil {
			return err
		}
		switch namespace {
		case librbd.SnapNamespaceTypeTrash, snapshotOfMirror:
			info.Kept++
		case librbd.SnapNamespaceTypeGroup:
			info.Kept++
			spec := "GROUP@SNAPSHOT" // as in groupSpec
			if group, err := image.GetSnapGroupNamespace(one.Id); err == nil {
				spec = p.groupSpec(int64(group.Pool), group.GroupName) + "@" + group.GroupSnapName // #nosec G115 -- pools' IDs are small
			}
			info.Held = append(info.Held, "rbd group snap rm "+spec)
		default:
			info.Snapshots = append(info.Snapshots, one.Name)
		}
	}
	slices.Sort(info.Snapshots)
	return err
}

// listHolds adds to info what holds an image beside its snapshots.
func (p *radosPool) listHolds(image *librbd.Image, info *rbd.Image) error {
	spec := p.name + "/" + image.GetName()
	group, err := image.GetGroup()
	switch err = translate(err, rbd.ErrPoolNotFound); {
	case err == nil && group.Name == "":
	case err == nil, errors.Is(err, rbd.ErrPermissionDenied), errors.Is(err, rbd.ErrPoolNotFound):
		info.Held = append(info.Held, "rbd group image rm "+p.groupSpec(group.PoolID, group.Name)+" "+spec)
	default:
		return err
	}
	// What is mirrored without being the primary has one of these; the latter is non-primary.
	if !slices.Contains(info.Features, "journaling") && !slices.Contains(info.Features, "feature-10") {
		return nil
	}
	mirror, err := image.GetMirrorImageInfo()
	if err == nil && mirror.State == librbd.MirrorImageEnabled && !mirror.Primary {
		info.Held = append(info.Held, "rbd mirror image disable --force "+spec)
	}
	return err
}

// groupSpec names a group as the rbd command takes it, or GROUP where this user may not read
// its name: it may be in another pool.
func (p *radosPool) groupSpec(pool int64, name string) string {
	where, err := p.conn.GetPoolByID(pool)
	if err != nil || name == "" {
		return "GROUP"
	}
	return where + "/" + name
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
	return parent, ignore(err, librbd.ErrNotFound)
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
