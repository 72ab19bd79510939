// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

const (
	// idObject begins the name of the object that has an image's id, by its name;
	// headerObject that of the one with all else about the image, by its id.
	// Source: RBD_ID_PREFIX and RBD_HEADER_PREFIX in Ceph's src/include/rbd_types.h.
	idObject     = "rbd_id."
	headerObject = "rbd_header."
	// idLength is longer than any id: 20 characters or less (MAX_IMAGE_ID in
	// src/librbd/Utils.h).
	idLength = 256
	// configPrefix begins the keys of entries that are options of librbd.
	// Source: METADATA_CONF_PREFIX in src/librbd/ImageCtx.h.
	configPrefix = "conf_"
)

// SetMetadata sets entries in two round trips: it reads the image's id, then has the
// header's OSD set them all, with the method that librbd calls for each entry. librbd would
// open the image for that, which makes this client a watcher, and notify all watchers
// after each entry: four entries would take twenty times the CPU and the time.
//
// Leaving out the notification is harmless: of the metadata, clients that have the image
// open keep only options of librbd, and setMetadataOpen sets those. An exclusive lock does
// not matter: it orders writes of data, and the OSD sets all entries at once, or none.
//
// If this finds no image, librbd says what there is: an image of format 1, leftovers of
// one, or none.
func (p *radosPool) SetMetadata(_ context.Context, name string, entries map[string]string) error {
	options := false
	for key, value := range entries {
		if err := errors.Join(checkName(key), checkText(value)); err != nil {
			return fmt.Errorf("entry %q: %w", key, err)
		}
		options = options || strings.HasPrefix(key, configPrefix)
	}
	if options {
		return p.setMetadataOpen(name, entries)
	}
	id, err := p.imageID(name)
	if err == nil {
		err = p.exec(headerObject+id, "metadata_set", encodeEntries(entries))
	}
	if errors.Is(err, rados.ErrNotFound) {
		return p.setMetadataOpen(name, entries)
	}
	return err
}

// imageID reads the id of an image of format 2.
func (p *radosPool) imageID(name string) (string, error) {
	data := make([]byte, idLength)
	n, err := p.io.Read(idObject+name, data, 0)
	if err != nil {
		return "", err
	}
	id, _, ok := decodeText(data[:n])
	if !ok || id == "" {
		return "", fmt.Errorf("object %q holds no id of an image", idObject+name)
	}
	return id, nil
}

// exec has an object's OSD run a method of Ceph's object class for images.
// Source: src/cls/rbd/cls_rbd.cc.
func (p *radosPool) exec(object, method string, in []byte) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertExists() // the method would make a missing object
	op.Exec("rbd", method, in)
	return op.Operate(p.io, object, rados.OperationNoFlag)
}

// setMetadataOpen sets entries with librbd.
func (p *radosPool) setMetadataOpen(name string, entries map[string]string) error {
	image, err := librbd.OpenImage(p.io, name, librbd.NoSnapshot)
	return change(image, err, func() error {
		// Sorted, so that what an interrupted call leaves does not depend on chance.
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			if err := image.SetMetadata(key, entries[key]); err != nil {
				return err
			}
		}
		return nil
	})
}
