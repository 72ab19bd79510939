// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// watchedPool tells the gate how calls end.
type watchedPool struct {
	rbd.Pool
	visit *visit
}

func (p watchedPool) CreateImage(ctx context.Context, name string, spec rbd.ImageSpec) error {
	began := time.Now()
	err := p.Pool.CreateImage(ctx, name, spec)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) Image(ctx context.Context, name string) (rbd.Image, error) {
	began := time.Now()
	image, err := p.Pool.Image(ctx, name)
	p.visit.saw(began, err)
	return image, err
}

func (p watchedPool) SetMetadata(ctx context.Context, name string, entries map[string]string) error {
	began := time.Now()
	err := p.Pool.SetMetadata(ctx, name, entries)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) GrowImage(ctx context.Context, name string, sizeBytes uint64) error {
	began := time.Now()
	err := p.Pool.GrowImage(ctx, name, sizeBytes)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) Written(ctx context.Context, name string) (bool, error) {
	began := time.Now()
	written, err := p.Pool.Written(ctx, name)
	p.visit.saw(began, err)
	return written, err
}

func (p watchedPool) Notes(ctx context.Context, object string) (map[string][]byte, error) {
	began := time.Now()
	notes, err := p.Pool.Notes(ctx, object)
	p.visit.saw(began, err)
	return notes, err
}

func (p watchedPool) SetNotes(ctx context.Context, object string, notes map[string][]byte) error {
	began := time.Now()
	err := p.Pool.SetNotes(ctx, object, notes)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) RemoveNotes(ctx context.Context, object string, keys ...string) error {
	began := time.Now()
	err := p.Pool.RemoveNotes(ctx, object, keys...)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) RemoveImage(ctx context.Context, name string) error {
	p.visit.setRemoving(true)
	defer p.visit.setRemoving(false)
	began := time.Now()
	err := p.Pool.RemoveImage(ctx, name)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) TrashImage(ctx context.Context, name string, keep time.Duration) error {
	began := time.Now()
	err := p.Pool.TrashImage(ctx, name, keep)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) Trashed(ctx context.Context, id string) (rbd.Trashed, error) {
	began := time.Now()
	trashed, err := p.Pool.Trashed(ctx, id)
	p.visit.saw(began, err)
	return trashed, err
}

func (p watchedPool) RemoveTrashed(ctx context.Context, id string) error {
	p.visit.setRemoving(true)
	defer p.visit.setRemoving(false)
	began := time.Now()
	err := p.Pool.RemoveTrashed(ctx, id)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) SnapshotImage(ctx context.Context, id, snapshot string) error {
	began := time.Now()
	err := p.Pool.SnapshotImage(ctx, id, snapshot)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) CloneImage(ctx context.Context, name string, spec rbd.CloneSpec) error {
	began := time.Now()
	err := p.Pool.CloneImage(ctx, name, spec)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) RemoveSnapshot(ctx context.Context, id, snapshot string) error {
	began := time.Now()
	err := p.Pool.RemoveSnapshot(ctx, id, snapshot)
	p.visit.saw(began, err)
	return err
}

func (p watchedPool) HasClone(ctx context.Context, id, snapshot, clone string) (bool, error) {
	began := time.Now()
	has, err := p.Pool.HasClone(ctx, id, snapshot, clone)
	p.visit.saw(began, err)
	return has, err
}

func (p watchedPool) Snapshots(ctx context.Context, id string) ([]string, error) {
	began := time.Now()
	snapshots, err := p.Pool.Snapshots(ctx, id)
	p.visit.saw(began, err)
	return snapshots, err
}

func (p watchedPool) CloneDepth(ctx context.Context, name string) (int, error) {
	began := time.Now()
	depth, err := p.Pool.CloneDepth(ctx, name)
	p.visit.saw(began, err)
	return depth, err
}

// FlattenImage takes the longer the larger the image is, like a removal, and so
// says nothing of an outage.
func (p watchedPool) FlattenImage(ctx context.Context, name string) error {
	p.visit.setRemoving(true)
	defer p.visit.setRemoving(false)
	began := time.Now()
	err := p.Pool.FlattenImage(ctx, name)
	p.visit.saw(began, err)
	return err
}

// HandOverTrashed tells the gate nothing: it is the manager that answers or not,
// which says nothing about the pool.
func (p watchedPool) HandOverTrashed(ctx context.Context, id string) error {
	return p.Pool.HandOverTrashed(ctx, id)
}

func (p watchedPool) Close() {
	p.Pool.Close()
	p.visit.leave()
}
