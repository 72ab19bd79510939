// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

func (p *radosPool) FinishRemovals(ctx context.Context, names ...string) error {
	// Not librbd's list: in go-ceph it lacks who put an image there.
	trash, err := p.io.GetAllOmapValues(trashObject, "", trashKey, notesAtOnce)
	if err != nil {
		return ignore(err, rados.ErrNotFound) // then no image was ever removed
	}
	for key, entry := range trash {
		// An entry that can't be read is not ours.
		e, ok := parseTrashEntry(entry)
		if !ok || e.source != trashRemoving || !slices.Contains(names, e.Name) {
			continue
		}
		if err := ignore(p.RemoveTrashed(ctx, strings.TrimPrefix(key, trashKey)), librbd.ErrNotFound); err != nil {
			return err
		}
	}
	return nil
}

func (p *radosPool) TrashImage(_ context.Context, name string, keep time.Duration) error {
	return p.intoTrash(name, func() error { return librbd.GetImage(p.io, name).Trash(keep) })
}

// intoTrash runs move, which moves an image into the trash, and first makes the trash of a
// pool that has none. If the pool is full, librbd would not make it, and say that there is no
// image (seen with Ceph 16.2). So this makes it, by force: deletions make room.
func (p *radosPool) intoTrash(name string, move func() error) error {
	err := move()
	if !errors.Is(err, librbd.ErrNotFound) {
		return err
	}
	image, openErr := librbd.OpenImageReadOnly(p.io, name, librbd.NoSnapshot)
	if openErr != nil {
		return openErr // normally: the image does not exist
	}
	_ = image.Close() // only opened
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateIdempotent)
	if trashErr := op.Operate(p.io, trashObject, rados.OperationFullForce); trashErr != nil {
		return trashErr
	}
	if err = move(); errors.Is(err, librbd.ErrNotFound) {
		return errors.New("librbd does not find it, though it can be opened")
	}
	return err
}

func (p *radosPool) Trashed(_ context.Context, id string) (rbd.Trashed, error) {
	e, err := p.trashEntry(id)
	return e.Trashed, err
}

func (p *radosPool) trashEntry(id string) (trashEntry, error) {
	entries, err := p.notesOf(trashObject, []string{trashKey + id})
	if err != nil {
		return trashEntry{}, err
	}
	entry, found := entries[trashKey+id]
	if !found {
		return trashEntry{}, rados.ErrNotFound
	}
	e, ok := parseTrashEntry(entry)
	if !ok {
		return trashEntry{}, fmt.Errorf("its entry in the trash is %w", rbd.ErrNotSupported)
	}
	return e, nil
}

func (p *radosPool) RemoveTrashed(_ context.Context, id string) error {
	return p.afterMove(id, func() error { return librbd.TrashRemove(p.io, id, true) })
}

func (p *radosPool) ShrinkTrashed(_ context.Context, id string, objects uint64) (left uint64, err error) {
	image, err := librbd.OpenImageById(p.io, id, librbd.NoSnapshot)
	err = change(image, err, func() error {
		info, err := image.Stat()
		part := objects * info.Obj_size
		if err != nil || info.Size <= part {
			return err
		}
		// The checks and steps of librbd's removal.
		snapshots, err := image.GetSnapshotNames()
		watchers, watchersErr := image.ListWatchers()
		group, groupErr := image.GetGroup()
		switch err := errors.Join(err, watchersErr, groupErr); {
		case err != nil:
			return err
		case group.Name != "":
			return rbd.ErrImageHeld
		case len(snapshots) > 0:
			return rbd.ErrImageHasSnapshots
		case len(watchers) > 1: // one is this client
			return rbd.ErrImageInUse
		}
		if err := p.afterMove(id, func() error { return p.setTrashState(id, trashEnding, trashNormal) }); err != nil {
			return err // also if the image is not in the trash, or being restored
		}
		// librbd stores the size last: nothing is lost sight of if this is cut off.
		left = (info.Size - 1) / part * part
		return image.Resize(left)
	})
	return left, err
}

// afterMove runs f, which removes something of an image in the trash, and completes the
// image's move there if need be.
func (p *radosPool) afterMove(id string, f func() error) error {
	err := f()
	if number, _ := errno(err); number != syscall.EUCLEAN && number != syscall.ESTALE {
		return err
	}
	// A client is moving, removing or restoring the image; or died while doing so.
	if err := p.endMove(id); err != nil {
		return err
	}
	return f()
}

// endMove completes a move to the trash that was cut off after the image had lost its
// name, if another image has that name by now: only the state in the entry is missing.
// librbd continues a move by name only, which is enough for all other moves.
func (p *radosPool) endMove(id string) error {
	e, err := p.trashEntry(id)
	if err != nil {
		return err
	}
	if !e.Moving {
		return rbd.ErrImageInUse
	}
	switch holder, err := p.imageID(e.Name); {
	case errors.Is(err, rados.ErrNotFound), err == nil && holder == id:
		return rbd.ErrImageInUse
	case err != nil:
		return err
	}
	return p.setTrashState(id, trashNormal, trashMoving)
}

// setTrashState fails with ESTALE if the state is neither the expected nor the new one.
func (p *radosPool) setTrashState(id string, state, expected byte) error {
	return p.exec(trashObject, "trash_state_set", append(appendText(nil, id), state, expected))
}
