// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"errors"
	"slices"
	"strings"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

func (p *radosPool) finishRemovals(names []string) error {
	// Not librbd's list: go-ceph leaves out of it who put an image there.
	trash, err := p.io.GetAllOmapValues(trashObject, "", trashKey, notesAtOnce)
	if errors.Is(err, rados.ErrNotFound) {
		return nil // no image was ever removed
	}
	if err != nil {
		return err
	}
	for key, entry := range trash {
		name, removing := trashed(entry)
		if !removing || !slices.Contains(names, name) {
			continue
		}
		err := librbd.TrashRemove(p.io, strings.TrimPrefix(key, trashKey), true)
		if err != nil && !errors.Is(err, librbd.ErrNotFound) {
			return err
		}
	}
	return nil
}
