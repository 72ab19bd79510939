// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"encoding/binary"
	"maps"
	"slices"
)

// Ceph's encoding of texts and maps, as far as image headers need it. All numbers are
// little endian. A text is its length in four bytes, then its bytes; a map is the number
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
