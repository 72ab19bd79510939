// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/ceph/go-ceph/rados"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// notesAtOnce is how many notes one read asks for: fewer than OSDs return at once by
// default (osd_max_omap_entries_per_request).
const notesAtOnce = 512

func (p *radosPool) Notes(_ context.Context, object string, keys ...string) (notes map[string][]byte, err error) {
	if len(keys) > 0 {
		notes, err = p.notesOf(object, keys)
	} else {
		notes, err = p.io.GetAllOmapValues(object, "", "", notesAtOnce)
	}
	if errors.Is(err, rados.ErrNotFound) {
		return map[string][]byte{}, nil
	}
	return notes, err
}

func (p *radosPool) notesOf(object string, keys []string) (map[string][]byte, error) {
	op := rados.CreateReadOp()
	defer op.Release()
	step := op.GetOmapValuesByKeys(keys)
	if err := op.Operate(p.io, object, rados.OperationNoFlag); err != nil {
		return nil, err
	}
	notes := map[string][]byte{}
	for {
		note, err := step.Next()
		if err != nil || note == nil {
			return notes, err
		}
		notes[note.Key] = append([]byte{}, note.Value...)
	}
}

func (p *radosPool) SetNotes(_ context.Context, object string, notes map[string][]byte) error {
	for key := range notes {
		if err := checkName(key); err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
	}
	op := rados.CreateWriteOp()
	defer op.Release()
	// Even without notes, the call shows what is wrong with the pool.
	op.SetOmap(notes)
	// By force, since a full pool would refuse the object's first note, and so a deletion.
	err := op.Operate(p.io, object, rados.OperationFullForce)
	if number, _ := errno(err); number == syscall.EOPNOTSUPP {
		return rbd.ErrErasureCoded // only such pools have no omap
	}
	return err
}

func (p *radosPool) RemoveNotes(_ context.Context, object string, keys ...string) error {
	return ignore(p.io.RmOmapKeys(object, keys), rados.ErrNotFound)
}
