// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Ceph's encoding, as far as image headers and the trash need it. All numbers are little
// endian. A text is its length in four bytes, then its bytes; a map is the number
// of its entries in four bytes, then keys and values in turn.
// Source: Ceph's src/include/encoding.h.

// encodeEntries encodes a map<string, bufferlist>.
func encodeEntries(entries map[string]string) []byte {
	b := binary.LittleEndian.AppendUint32(nil, length(len(entries)))
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		b = appendText(appendText(b, key), entries[key])
	}
	return b
}

func appendText(b []byte, text string) []byte {
	return append(binary.LittleEndian.AppendUint32(b, length(len(text))), text...)
}

// decodeText returns the text at the beginning of b and what follows it; ok is false if b
// is too short.
func decodeText(b []byte) (text string, rest []byte, ok bool) {
	const size = 4
	if len(b) < size {
		return "", nil, false
	}
	n := uint64(binary.LittleEndian.Uint32(b))
	if rest = b[size:]; n > uint64(len(rest)) {
		return "", nil, false
	}
	return string(rest[:n]), rest[n:], true
}

// length is n as Ceph encodes it. No cluster would take a text of more than 4 GiB.
func length(n int) uint32 { return uint32(n) } // #nosec G115 -- texts of our own, far below 4 GiB

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
	// the state after that, and trashEnding that of an image whose removal has begun.
	// Source: TrashImageState in the same file.
	trashNormal = 0
	trashMoving = 1
	trashEnding = 2
)

// trashEntry is what the trash says about an image.
type trashEntry struct {
	rbd.Trashed
	source byte
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
	e := trashEntry{source: entry[header]}
	e.Name = name
	e.Since = time.Unix(int64(binary.LittleEndian.Uint32(rest)), int64(binary.LittleEndian.Uint32(rest[4:])))
	rest = rest[times:]
	e.Moving = len(rest) > 0 && rest[0] == trashMoving // there is a state since Ceph 15
	return e, true
}
