// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"encoding/binary"
	"maps"
	"slices"
)

// Ceph's encoding of texts and maps, as far as image headers need it: all numbers
// are little endian, a text is its length in four bytes and itself, a map the
// number of its entries in four bytes and then keys and values in turn.
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

// decodeText returns the text that b begins with, and what follows; false when
// b is too short.
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

// length is n as it is encoded. What is longer than 4 GiB no cluster would take.
func length(n int) uint32 { return uint32(n) } // #nosec G115 -- texts of our own, far below 4 GiB
