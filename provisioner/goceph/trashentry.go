// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"encoding/binary"
	"time"
)

const (
	// trashObject holds a pool's trash: its omap has an entry for each image, whose key
	// is trashKey and the image's id.
	// Source: RBD_TRASH in Ceph's src/include/rbd_types.h.
	trashObject = "rbd_trash"
	trashKey    = "id_"
	// trashRemoving is the source of an image that RemoveImage put there.
	// Source: TrashImageSource in Ceph's src/cls/rbd/cls_rbd_types.h.
	trashRemoving = 3
	// trashMoving is the state of an entry until the image has lost its name, trashNormal
	// the state after that. Source: TrashImageState in the same file.
	trashNormal = 0
	trashMoving = 1
)

// trashEntry is what the trash says about an image.
type trashEntry struct {
	source byte
	name   string
	since  time.Time
	state  byte
}

// parseTrashEntry reads an entry of the trash, and reports whether it could.
//
// An entry is a header of six bytes (version, oldest version that reads it, length), who
// put the image there (one byte), the name, when that happened and until when to keep the
// image (seconds and nanoseconds, four bytes each), the state (one byte), and more.
// Source: TrashImageSpec::encode in the same file.
func parseTrashEntry(entry []byte) (trashEntry, bool) {
	const header, times = 6, 16
	if len(entry) <= header || entry[1] > 1 {
		return trashEntry{}, false
	}
	name, rest, ok := decodeText(entry[header+1:])
	if !ok || len(rest) < times {
		return trashEntry{}, false
	}
	e := trashEntry{source: entry[header], name: name}
	e.since = time.Unix(int64(binary.LittleEndian.Uint32(rest)), int64(binary.LittleEndian.Uint32(rest[4:])))
	if rest = rest[times:]; len(rest) > 0 { // since Ceph 15
		e.state = rest[0]
	}
	return e, true
}
