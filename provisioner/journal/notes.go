// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// The functions below keep notes in an object of a pool. With no object, there are none.

func writeNote(ctx context.Context, pool rbd.Notes, object, key string, note any) error {
	if object == "" {
		return nil
	}
	text, err := json.Marshal(note)
	if err != nil {
		return err // can't happen: every field can be written
	}
	return pool.SetNotes(ctx, object, map[string][]byte{key: text})
}

// readNotes returns the notes that have one of the keys, or all if there is no key, sorted
// by key, and the keys of those that parse does not accept.
func readNotes[T any](ctx context.Context, pool rbd.Notes, object string,
	parse func(key string, text []byte) (note T, ok bool), keys ...string) (notes []T, unreadable []string, err error) {
	if object == "" {
		return nil, nil, nil
	}
	texts, err := pool.Notes(ctx, object, keys...)
	for _, key := range slices.Sorted(maps.Keys(texts)) {
		if note, ok := parse(key, texts[key]); ok {
			notes = append(notes, note)
		} else {
			unreadable = append(unreadable, key)
		}
	}
	return notes, unreadable, err
}

// clearAtOnce is how many notes one call clears: an OSD handles each call in one go.
const clearAtOnce = 500

func clearNotes(ctx context.Context, pool rbd.Notes, object string, keys []string) error {
	if object == "" {
		return nil
	}
	for part := range slices.Chunk(keys, clearAtOnce) {
		if err := pool.RemoveNotes(ctx, object, part...); err != nil {
			return err
		}
	}
	return nil
}
