// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// FinishRemovals implements rbd.Pool. It holds no image's name: an image that has one of
// these names now is another image.
func (p *pool) FinishRemovals(ctx context.Context, names ...string) error {
	_, err := operate(ctx, p, operation{
		log: klog.FromContext(ctx), message: "Called librbd", attempt: "finish removals", name: trashObject,
	}, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.finishRemovals(names)
	})
	if err != nil {
		err = fmt.Errorf("finish interrupted removals in pool %q: %w", p.name, err)
	}
	return err
}

// TrashImage implements rbd.Trash.
func (p *pool) TrashImage(ctx context.Context, name string, keep time.Duration) error {
	_, err := call(ctx, p, "move to the trash", name, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.trashImage(name, keep)
	})
	return err
}

// Trashed implements rbd.Trash.
func (p *pool) Trashed(ctx context.Context, id string) (rbd.Trashed, error) {
	return callTrash(ctx, p, "look up", id, func(io ioctx) (rbd.Trashed, error) { return io.trashed(id) })
}

// RemoveTrashed implements rbd.Trash.
func (p *pool) RemoveTrashed(ctx context.Context, id string) error {
	_, err := callTrash(ctx, p, "remove", id, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.removeTrashed(id)
	})
	return err
}

// callTrash is call for an image in the trash. It holds the ID, which an image keeps for
// life, as a name; holding up an image that really has that name does no harm.
func callTrash[T any](ctx context.Context, p *pool, attempt, id string, f func(ioctx) (T, error)) (T, error) {
	value, err := operate(ctx, p, operation{
		log: klog.FromContext(ctx).WithValues("id", id), message: "Called librbd", attempt: attempt + " trashed",
		name: id, notFound: rbd.ErrImageNotFound, lock: id,
	}, f)
	if err != nil {
		err = fmt.Errorf("%s image %q in the trash of pool %q: %w", attempt, id, p.name, err)
	}
	return value, err
}
