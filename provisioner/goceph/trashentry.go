// SPDX-License-Identifier: Apache-2.0

package goceph

import "encoding/binary"

const (
	// trashObject holds a pool's trash: its omap has an entry for each image,
	// whose key is trashKey and the image's id.
	// Source: RBD_TRASH in Ceph's src/include/rbd_types.h.
	trashObject = "rbd_trash"
	trashKey    = "id_"
	// trashRemoving is who put an image there when RemoveImage did.
	// Source: TrashImageSource in Ceph's src/cls/rbd/cls_rbd_types.h.
	trashRemoving = 3
)

// trashed reads the name of an image from its entry in the trash, and whether it
// is there because it was being removed. An entry that it can't read is
// somebody's.
//
// An entry is a header of six bytes (version, oldest version that reads it,
// length), who put it there (one byte), and the name (length in four bytes, all
// little endian), and more. Source: TrashImageSpec::encode in the same file.
func trashed(entry []byte) (name string, removing bool) {
	const header, length = 6, 4
	if len(entry) < header+1+length || entry[1] > 1 {
		return "", false
	}
	source, rest := entry[header], entry[header+1:]
	n := binary.LittleEndian.Uint32(rest)
	rest = rest[length:]
	if uint64(n) > uint64(len(rest)) {
		return "", false
	}
	return string(rest[:n]), source == trashRemoving
}
