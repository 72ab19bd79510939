// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"errors"
	"math"
	"syscall"
	"time"

	"github.com/ceph/go-ceph/rados"
)

const (
	// directoryObject lists a pool's images, directoryName begins the keys that hold
	// an ID by the name.
	// Source: RBD_DIRECTORY in Ceph's src/include/rbd_types.h, RBD_DIR_NAME_KEY_PREFIX
	// in src/cls/rbd/cls_rbd.cc.
	directoryObject = "rbd_directory"
	directoryName   = "name_"
	// mirroringObject has a key for each mirrored image: mirroringImage and its ID.
	// Source: RBD_MIRRORING in src/include/rbd_types.h, IMAGE_KEY_PREFIX in
	// src/cls/rbd/cls_rbd.cc.
	mirroringObject = "rbd_mirroring"
	mirroringImage  = "image_"
)

// moveToTrash moves a plain image to the trash, in the steps in which librbd does it
// (Trash::move in Ceph's src/librbd/api/Trash.cc and src/librbd/trash/MoveRequest.cc),
// by the same methods of Ceph's object class. librbd would first open the image, for
// what plainHeader and mirrored find out, which is most of its CPU and time.
//
// It returns errNotPlain when librbd is to do it: where there is something else than a
// plain image, or a move of it was begun before. A move that is cut off here is, after
// each step, what librbd would have left; so the next attempt leaves it to librbd.
//
// One thing is left out: telling who watches the trash. That is rbd-mirror, which
// passes over all that it has not put there itself (add_image in
// src/tools/rbd_mirror/image_deleter/TrashWatcher.cc).
func (p *radosPool) moveToTrash(name string, keep time.Duration) error {
	id, err := p.listedID(name)
	if err != nil {
		return plainOrLibrbd(err)
	}
	if _, err = p.plainHeader(id); err != nil {
		return plainOrLibrbd(err)
	}
	if err = p.notMirrored(id); err != nil {
		return err
	}
	now := time.Now()
	if now.Add(keep.Truncate(time.Second)).Unix() > math.MaxUint32 {
		return errNotPlain // not a time that Ceph knows
	}
	for _, step := range []func() error{
		func() error { return p.addToTrash(id, newTrashEntry(name, now, keep)) },
		func() error { return p.removeID(name) },
		func() error { return p.unlist(name, id) },
		func() error { return p.setTrashNormal(id) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// plainOrLibrbd is err, or errNotPlain where something is missing: librbd says what.
func plainOrLibrbd(err error) error {
	if errors.Is(err, rados.ErrNotFound) {
		return errNotPlain
	}
	return err
}

// listedID returns the ID that the pool's directory has by an image's name.
func (p *radosPool) listedID(name string) (string, error) {
	value, err := p.omapValue(directoryObject, directoryName+name)
	if err != nil {
		return "", err
	}
	id, rest, ok := decodeText(value)
	if !ok || id == "" || len(rest) > 0 {
		return "", errNotPlain
	}
	return id, nil
}

// notMirrored returns errNotPlain if an image is mirrored, which librbd ends before
// it moves the image.
func (p *radosPool) notMirrored(id string) error {
	switch _, err := p.omapValue(mirroringObject, mirroringImage+id); {
	case errors.Is(err, rados.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return errNotPlain
}

// omapValue reads one key of an object, or returns rados.ErrNotFound.
func (p *radosPool) omapValue(object, key string) ([]byte, error) {
	op := rados.CreateReadOp()
	defer op.Release()
	values := op.GetOmapValuesByKeys([]string{key})
	if err := op.Operate(p.io, object, rados.OperationNoFlag); err != nil {
		return nil, err
	}
	found, err := values.Next()
	if err != nil {
		return nil, err
	}
	if found == nil {
		return nil, rados.ErrNotFound
	}
	return found.Value, nil
}

// addToTrash is the first step: the entry is there, in the state trashMoving.
func (p *radosPool) addToTrash(id string, entry []byte) error {
	err := p.exec(trashObject, "trash_add", append(appendText(nil, id), entry...))
	// There is an entry of this image, or no trash that the method would make.
	if number, _ := errno(err); number == syscall.EEXIST || number == syscall.ENOENT {
		return errNotPlain
	}
	return err
}

// removeID is the second step: nobody can open the image by its name.
func (p *radosPool) removeID(name string) error {
	return ignoreNotFound(p.io.Delete(idObject + name))
}

// unlist is the third step: the name is free. The method does nothing if another
// image has it by now.
func (p *radosPool) unlist(name, id string) error {
	return ignoreNotFound(p.exec(directoryObject, "dir_remove_image", appendText(appendText(nil, name), id)))
}

// setTrashNormal is the last step: the move is over. It changes nothing when the
// state is no longer trashMoving. An OSD of a Ceph that has no states (before 15) does
// not know the method, which is as good.
// Source: trash_state_set in Ceph's src/cls/rbd/cls_rbd.cc.
func (p *radosPool) setTrashNormal(id string) error {
	err := p.exec(trashObject, "trash_state_set", append(appendText(nil, id), trashNormal, trashMoving))
	if number, _ := errno(err); number == syscall.EOPNOTSUPP {
		return nil
	}
	return err
}

// exec calls a method of Ceph's class for images that writes.
func (p *radosPool) exec(object, method string, input []byte) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Exec("rbd", method, input)
	return op.Operate(p.io, object, rados.OperationNoFlag)
}

// ignoreNotFound is for steps that somebody else may have done meanwhile.
func ignoreNotFound(err error) error {
	if errors.Is(err, rados.ErrNotFound) {
		return nil
	}
	return err
}
