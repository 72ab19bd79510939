// SPDX-License-Identifier: Apache-2.0

package rbd

import (
	"context"
	"time"
)

// The names of calls are those of the methods.
const (
	OpCreateImage    = "CreateImage"
	OpImage          = "Image"
	OpSetMetadata    = "SetMetadata"
	OpGrowImage      = "GrowImage"
	OpRemoveImage    = "RemoveImage"
	OpFinishRemovals = "FinishRemovals"
	OpWritten        = "Written"

	OpTrashImage      = "TrashImage"
	OpTrashed         = "Trashed"
	OpRemoveTrashed   = "RemoveTrashed"
	OpShrinkTrashed   = "ShrinkTrashed"
	OpHandOverTrashed = "HandOverTrashed"

	OpSnapshotImage  = "SnapshotImage"
	OpCloneImage     = "CloneImage"
	OpRemoveSnapshot = "RemoveSnapshot"
	OpHasClone       = "HasClone"
	OpSnapshots      = "Snapshots"
	OpCloneDepth     = "CloneDepth"
	OpFlattenImage   = "FlattenImage"

	OpNotes       = "Notes"
	OpSetNotes    = "SetNotes"
	OpRemoveNotes = "RemoveNotes"
)

// Op is a call to a Pool.
type Op struct {
	// Name is one of the names above.
	Name string
	// Image is the name or the ID of the image that the call is about, or the object of
	// the notes; empty for FinishRemovals, which takes several names.
	Image string
	// Changes reports whether the call may change something in the cluster.
	Changes bool
	// Slow reports whether the call takes time in proportion to an image's size, so
	// that its silence is no sign of an outage.
	Slow bool
}

func read(name, image string) Op { return Op{Name: name, Image: image} }

func change(name, image string) Op { return Op{Name: name, Image: image, Changes: true} }

func slowChange(name, image string) Op {
	return Op{Name: name, Image: image, Changes: true, Slow: true}
}

// Around returns a Pool that makes each call through around, which gets the call as a
// function. around may return an error without running that, or before it has ended: the
// call then returns only the error. Close does not go through around.
//
// The returned type embeds nothing: a method forgotten here does not compile.
func Around(p Pool, around func(ctx context.Context, op Op, call func(context.Context) error) error) Pool {
	return aroundPool{p, around}
}

type aroundPool struct {
	pool   Pool
	around func(ctx context.Context, op Op, call func(context.Context) error) error
}

// ask is around for a call that returns a value. It reads the value only if there is no
// error: otherwise the call may still be running.
func ask[T any](ctx context.Context, p aroundPool, op Op, call func(context.Context) (T, error)) (T, error) {
	var value T
	err := p.around(ctx, op, func(ctx context.Context) (err error) {
		value, err = call(ctx)
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return value, nil
}

func (p aroundPool) CreateImage(ctx context.Context, name string, spec ImageSpec) error {
	return p.around(ctx, change(OpCreateImage, name), func(ctx context.Context) error { return p.pool.CreateImage(ctx, name, spec) })
}

func (p aroundPool) Image(ctx context.Context, name string) (Image, error) {
	return ask(ctx, p, read(OpImage, name), func(ctx context.Context) (Image, error) { return p.pool.Image(ctx, name) })
}

func (p aroundPool) SetMetadata(ctx context.Context, name string, entries map[string]string) error {
	return p.around(ctx, change(OpSetMetadata, name), func(ctx context.Context) error { return p.pool.SetMetadata(ctx, name, entries) })
}

func (p aroundPool) GrowImage(ctx context.Context, name string, sizeBytes uint64) error {
	return p.around(ctx, change(OpGrowImage, name), func(ctx context.Context) error { return p.pool.GrowImage(ctx, name, sizeBytes) })
}

func (p aroundPool) RemoveImage(ctx context.Context, name string) error {
	return p.around(ctx, slowChange(OpRemoveImage, name), func(ctx context.Context) error { return p.pool.RemoveImage(ctx, name) })
}

func (p aroundPool) FinishRemovals(ctx context.Context, names ...string) error {
	return p.around(ctx, slowChange(OpFinishRemovals, ""), func(ctx context.Context) error { return p.pool.FinishRemovals(ctx, names...) })
}

func (p aroundPool) Written(ctx context.Context, name string) (bool, error) {
	return ask(ctx, p, read(OpWritten, name), func(ctx context.Context) (bool, error) { return p.pool.Written(ctx, name) })
}

func (p aroundPool) TrashImage(ctx context.Context, name string, keep time.Duration) error {
	return p.around(ctx, change(OpTrashImage, name), func(ctx context.Context) error { return p.pool.TrashImage(ctx, name, keep) })
}

func (p aroundPool) Trashed(ctx context.Context, id string) (Trashed, error) {
	return ask(ctx, p, read(OpTrashed, id), func(ctx context.Context) (Trashed, error) { return p.pool.Trashed(ctx, id) })
}

func (p aroundPool) RemoveTrashed(ctx context.Context, id string) error {
	return p.around(ctx, slowChange(OpRemoveTrashed, id), func(ctx context.Context) error { return p.pool.RemoveTrashed(ctx, id) })
}

func (p aroundPool) ShrinkTrashed(ctx context.Context, id string, objects uint64) (uint64, error) {
	return ask(ctx, p, slowChange(OpShrinkTrashed, id), func(ctx context.Context) (uint64, error) { return p.pool.ShrinkTrashed(ctx, id, objects) })
}

func (p aroundPool) HandOverTrashed(ctx context.Context, id string) error {
	return p.around(ctx, change(OpHandOverTrashed, id), func(ctx context.Context) error { return p.pool.HandOverTrashed(ctx, id) })
}

func (p aroundPool) SnapshotImage(ctx context.Context, id, snapshot string) error {
	return p.around(ctx, change(OpSnapshotImage, id), func(ctx context.Context) error { return p.pool.SnapshotImage(ctx, id, snapshot) })
}

func (p aroundPool) CloneImage(ctx context.Context, name string, spec CloneSpec) error {
	return p.around(ctx, change(OpCloneImage, name), func(ctx context.Context) error { return p.pool.CloneImage(ctx, name, spec) })
}

func (p aroundPool) RemoveSnapshot(ctx context.Context, id, snapshot string) error {
	return p.around(ctx, change(OpRemoveSnapshot, id), func(ctx context.Context) error { return p.pool.RemoveSnapshot(ctx, id, snapshot) })
}

func (p aroundPool) HasClone(ctx context.Context, id, snapshot, clone string) (bool, error) {
	return ask(ctx, p, read(OpHasClone, id), func(ctx context.Context) (bool, error) { return p.pool.HasClone(ctx, id, snapshot, clone) })
}

func (p aroundPool) Snapshots(ctx context.Context, id string) ([]string, error) {
	return ask(ctx, p, read(OpSnapshots, id), func(ctx context.Context) ([]string, error) { return p.pool.Snapshots(ctx, id) })
}

func (p aroundPool) CloneDepth(ctx context.Context, name string) (int, error) {
	return ask(ctx, p, read(OpCloneDepth, name), func(ctx context.Context) (int, error) { return p.pool.CloneDepth(ctx, name) })
}

func (p aroundPool) FlattenImage(ctx context.Context, name string) error {
	return p.around(ctx, slowChange(OpFlattenImage, name), func(ctx context.Context) error { return p.pool.FlattenImage(ctx, name) })
}

func (p aroundPool) Notes(ctx context.Context, object string, keys ...string) (map[string][]byte, error) {
	return ask(ctx, p, read(OpNotes, object), func(ctx context.Context) (map[string][]byte, error) { return p.pool.Notes(ctx, object, keys...) })
}

func (p aroundPool) SetNotes(ctx context.Context, object string, notes map[string][]byte) error {
	return p.around(ctx, change(OpSetNotes, object), func(ctx context.Context) error { return p.pool.SetNotes(ctx, object, notes) })
}

func (p aroundPool) RemoveNotes(ctx context.Context, object string, keys ...string) error {
	return p.around(ctx, change(OpRemoveNotes, object), func(ctx context.Context) error { return p.pool.RemoveNotes(ctx, object, keys...) })
}

func (p aroundPool) Close() { p.pool.Close() }
