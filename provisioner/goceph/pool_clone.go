// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// flattening begins the names that FlattenImage holds. No image has such a name, so other
// calls about the image do not wait.
const flattening = "\x00flattening "

// SnapshotImage implements rbd.Clones.
func (p *pool) SnapshotImage(ctx context.Context, id, snapshot string) error {
	_, err := callID(ctx, p, "make a snapshot of", id, func(io ioctx) (struct{}, error) {
		if err := checkSnapshot(snapshot); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, io.snapshotImage(id, snapshot)
	})
	return err
}

// CloneImage implements rbd.Clones.
func (p *pool) CloneImage(ctx context.Context, name string, spec rbd.CloneSpec) error {
	_, err := call(ctx, p, "clone", name, func(io ioctx) (struct{}, error) {
		if err := errors.Join(checkName(spec.Source), checkSnapshot(spec.Snapshot)); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, io.cloneImage(name, spec)
	})
	return err
}

// RemoveSnapshot implements rbd.Clones.
func (p *pool) RemoveSnapshot(ctx context.Context, id, snapshot string) error {
	_, err := callID(ctx, p, "remove a snapshot of", id, func(io ioctx) (struct{}, error) {
		if err := checkSnapshot(snapshot); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, io.removeSnapshot(id, snapshot)
	})
	return err
}

// HasClone implements rbd.Clones.
func (p *pool) HasClone(ctx context.Context, id, snapshot, clone string) (bool, error) {
	return callID(ctx, p, "list the clones of", id, func(io ioctx) (bool, error) {
		if err := checkSnapshot(snapshot); err != nil {
			return false, err
		}
		return io.hasClone(id, snapshot, clone)
	})
}

// Snapshots implements rbd.Clones.
func (p *pool) Snapshots(ctx context.Context, id string) ([]string, error) {
	return callID(ctx, p, "list the snapshots of", id, func(io ioctx) ([]string, error) { return io.snapshots(id) })
}

// CloneDepth implements rbd.Clones.
func (p *pool) CloneDepth(ctx context.Context, name string) (int, error) {
	return call(ctx, p, "look for the parents of", name, func(io ioctx) (int, error) { return io.cloneDepth(name) })
}

// FlattenImage implements rbd.Clones.
func (p *pool) FlattenImage(ctx context.Context, name string) error {
	_, err := callLocking(ctx, p, "flatten", name, flattening+name, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.flattenImage(name)
	})
	return err
}

// callID is call for an image named by its ID, in the trash or not.
func callID[T any](ctx context.Context, p *pool, attempt, id string, f func(ioctx) (T, error)) (T, error) {
	value, err := operate(ctx, p, operation{
		log: klog.FromContext(ctx).WithValues("id", id), message: "Called librbd", attempt: attempt,
		name: id, notFound: rbd.ErrImageNotFound, lock: id,
	}, f)
	if err != nil {
		err = fmt.Errorf("%s the image with the ID %q in pool %q: %w", attempt, id, p.name, err)
	}
	return value, err
}

// checkSnapshot refuses a name that a C function would read as another one.
func checkSnapshot(name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}
