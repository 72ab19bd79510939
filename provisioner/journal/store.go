// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Store keeps notes of one kind in Ceph. Its errors are those of the rbd.Notes that it calls.
type Store[T any] struct {
	// Object is the object in each pool that holds the notes; without one, Store keeps none.
	Object string
	// key returns a note's key, parse reads a note and reports whether it is complete.
	key   func(T) string
	parse func(key string, text []byte) (T, bool)
}

// Write writes a note and replaces any with the same key.
func (s Store[T]) Write(ctx context.Context, pool rbd.Notes, note T) error {
	if s.Object == "" {
		return nil
	}
	text, err := json.Marshal(note)
	if err != nil {
		return err // can't happen: every field can be written
	}
	return pool.SetNotes(ctx, s.Object, map[string][]byte{s.key(note): text})
}

// Read returns the notes of a pool with the given keys, or all of them if none is given,
// sorted by key, and the keys of unreadable ones, such as those of another version.
func (s Store[T]) Read(ctx context.Context, pool rbd.Notes, keys ...string) (notes []T, unreadable []string, err error) {
	if s.Object == "" {
		return nil, nil, nil
	}
	texts, err := pool.Notes(ctx, s.Object, keys...)
	for _, key := range slices.Sorted(maps.Keys(texts)) {
		if note, ok := s.parse(key, texts[key]); ok {
			notes = append(notes, note)
		} else {
			unreadable = append(unreadable, key)
		}
	}
	return notes, unreadable, err
}

// Of returns the note with a key, or a zero one if there is none or it is unreadable.
func (s Store[T]) Of(ctx context.Context, pool rbd.Notes, key string) (note T, err error) {
	notes, _, err := s.Read(ctx, pool, key)
	if len(notes) > 0 {
		note = notes[0]
	}
	return note, err
}

// clearAtOnce is how many notes one call clears: an OSD handles each call in one go.
const clearAtOnce = 500

// Clear removes the notes with the given keys. A missing one is not an error.
func (s Store[T]) Clear(ctx context.Context, pool rbd.Notes, keys ...string) error {
	if s.Object == "" {
		return nil
	}
	for part := range slices.Chunk(keys, clearAtOnce) {
		if err := pool.RemoveNotes(ctx, s.Object, part...); err != nil {
			return err
		}
	}
	return nil
}
