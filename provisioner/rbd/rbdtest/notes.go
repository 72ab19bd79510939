// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Notes returns the notes of every object of a pool that has any. Unlike the call of that
// name, it needs no credentials and meets no fault.
func (c *Cluster) Notes(pool string) map[string]map[string][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[string]map[string][]byte{}
	for object, notes := range c.mustPool(pool).notes {
		if len(notes) > 0 {
			all[object] = cloneNotes(notes)
		}
	}
	return all
}

// Notes implements rbd.Notes.
func (p *pool) Notes(ctx context.Context, object string, keys ...string) (map[string][]byte, error) {
	return callNotes(ctx, p, CallNotes, "read", object, func() (map[string][]byte, error) {
		if p.state.deleted {
			return map[string][]byte{}, nil
		}
		notes := cloneNotes(p.state.notes[object])
		if len(keys) > 0 {
			maps.DeleteFunc(notes, func(key string, _ []byte) bool { return !slices.Contains(keys, key) })
		}
		return notes, nil
	})
}

// SetNotes implements rbd.Notes.
func (p *pool) SetNotes(ctx context.Context, object string, notes map[string][]byte) error {
	notes = cloneNotes(notes)
	_, err := callNotes(ctx, p, CallSetNotes, "set", object, func() (struct{}, error) {
		for key := range notes {
			if err := checkName(key); err != nil {
				return struct{}{}, fmt.Errorf("key %q: %w", key, err)
			}
		}
		switch {
		case p.state.deleted:
			return struct{}{}, rbd.ErrPoolNotFound
		case p.state.notes[object] == nil:
			p.state.notes[object] = map[string][]byte{}
		}
		maps.Copy(p.state.notes[object], notes)
		return struct{}{}, nil
	})
	return err
}

// RemoveNotes implements rbd.Notes.
func (p *pool) RemoveNotes(ctx context.Context, object string, keys ...string) error {
	_, err := callNotes(ctx, p, CallRemoveNotes, "remove", object, func() (struct{}, error) {
		for _, key := range keys {
			delete(p.state.notes[object], key)
		}
		return struct{}{}, nil
	})
	return err
}

// callNotes makes one call about the notes of an object. It locks no name.
func callNotes[T any](ctx context.Context, p *pool, kind Call, attempt, object string, f func() (T, error)) (T, error) {
	value, err := func() (T, error) {
		if err := checkName(object); err != nil {
			var none T
			return none, err
		}
		ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
		return invoke(ctx, p, kind, object, func() {}, func() (T, error) {
			if p.state.noImages {
				// Erasure-coded pools have no omap.
				var none T
				return none, rbd.ErrErasureCoded
			}
			return f()
		})
	}()
	if err != nil {
		err = fmt.Errorf("%s notes %q in pool %q: %w", attempt, object, p.state.name, err)
	}
	return value, err
}

func cloneNotes(notes map[string][]byte) map[string][]byte {
	clone := map[string][]byte{}
	for key, value := range notes {
		clone[key] = append([]byte{}, value...)
	}
	return clone
}
