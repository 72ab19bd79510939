// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"encoding/binary"
	"strings"
)

const (
	// metadataKey begins the keys of a header that are entries of metadata.
	// Source: RBD_METADATA_KEY_PREFIX in Ceph's src/cls/rbd/cls_rbd.cc.
	metadataKey = "metadata_"
	// headerKeys is how many keys of a header are read at once; it has about ten,
	// and as many more as it has entries of metadata.
	headerKeys = 200
	// featureLayering and featureDataPool are bits of a header's features.
	// Source: RBD_FEATURE_LAYERING and RBD_FEATURE_DATA_POOL in
	// src/include/rbd/features.h.
	featureLayering = 1 << 0
	featureDataPool = 1 << 7
)

// header is what the header of a plain image says: one as this program makes
// them, without snapshots, parent, group or migration.
type header struct {
	sizeBytes uint64
	// dataPool is the pool's ID where hasDataPool.
	dataPool    int64
	hasDataPool bool
	metadata    map[string]string
}

// parseHeader reads the omap of an image's header, and reports whether that is of
// a plain image. Of what it does not know, it says no: everything that is more
// than a plain image shows as a key of its own (parent, snapshot_ID, group,
// op_features, migration, stripe_unit and so on) or as a feature.
// Source: create and the methods that follow it in src/cls/rbd/cls_rbd.cc.
func parseHeader(omap map[string][]byte) (header, bool) {
	h := header{metadata: map[string]string{}}
	var features uint64
	found := 0
	for key, value := range omap {
		ok := true
		switch key {
		case "size":
			h.sizeBytes, ok = decodeNumber(value)
			found++
		case "features":
			features, ok = decodeNumber(value)
			found++
		case "object_prefix", "order":
			found++
		case "data_pool_id":
			var id uint64
			id, ok = decodeNumber(value)
			h.dataPool, h.hasDataPool = int64(id), true // #nosec G115 -- the same 8 bytes, signed in Ceph
		case "snap_seq", "flags", "create_timestamp", "access_timestamp", "modify_timestamp":
		default:
			ok = h.addMetadata(key, string(value))
		}
		if !ok {
			return header{}, false
		}
	}
	want := uint64(featureLayering)
	if h.hasDataPool {
		want |= featureDataPool
	}
	return h, found == 4 && features == want
}

func (h *header) addMetadata(key, value string) bool {
	entry, ok := strings.CutPrefix(key, metadataKey)
	// librbd's interface, where a zero byte ends a text, can't say these.
	if !ok || entry == "" || strings.ContainsRune(entry+value, 0) {
		return false
	}
	h.metadata[entry] = value
	return true
}

// decodeNumber reads a number of eight bytes, and nothing else.
func decodeNumber(b []byte) (uint64, bool) {
	if len(b) != 8 {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b), true
}
