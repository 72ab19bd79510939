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
// An entry is little endian: a header of six bytes (version, oldest version that reads
// it, length), who put the image there (one byte), the name (length in four bytes), when
// that happened and until when to keep the image (seconds and nanoseconds, four bytes
// each), the state (one byte), and more.
// Source: TrashImageSpec::encode in the same file.
func parseTrashEntry(entry []byte) (trashEntry, bool) {
	const header, length, times = 6, 4, 16
	if len(entry) < header+1+length || entry[1] > 1 {
		return trashEntry{}, false
	}
	e := trashEntry{source: entry[header]}
	rest := entry[header+1:]
	n := binary.LittleEndian.Uint32(rest)
	rest = rest[length:]
	if uint64(n)+times > uint64(len(rest)) {
		return trashEntry{}, false
	}
	e.name, rest = string(rest[:n]), rest[n:]
	e.since = time.Unix(int64(binary.LittleEndian.Uint32(rest)), int64(binary.LittleEndian.Uint32(rest[4:])))
	if rest = rest[times:]; len(rest) > 0 { // since Ceph 15
		e.state = rest[0]
	}
	return e, true
}
