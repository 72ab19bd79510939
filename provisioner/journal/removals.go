// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Removal says that the image of a deleted volume is in the trash, or about to be
// moved there, to be removed. It is written before the move and cleared after the
// removal. What is in the trash without one is somebody else's.
type Removal struct {
	// ID is that of the image, and the removal's.
	ID string `json:"-"`
	// Image is the name that the image had.
	Image string `json:"image"`
	// Volume is the name of its PersistentVolume.
	Volume string `json:"volume"`
	// At is when the move was begun, by the clock of who did.
	At time.Time `json:"at"`
	// Keep is for how long the image is kept in the trash.
	Keep time.Duration `json:"keep,omitempty"`
	// SizeBytes is that of the image.
	SizeBytes uint64 `json:"sizeBytes"`
	// Parent is the ID of the image that it is a clone of; empty for none.
	Parent string `json:"parent,omitempty"`
}

// Due returns from when on the image may be removed.
func (r Removal) Due() time.Time { return r.At.Add(r.Keep) }

// Removals are those of a Journal.
type Removals struct {
	// Object is the object of a pool that holds them.
	Object string
}

// Write writes a removal down, in place of one for the same image. The errors are
// those of SetNotes.
func (r Removals) Write(ctx context.Context, pool rbd.Notes, removal Removal) error {
	text, err := json.Marshal(removal)
	if err != nil {
		return err // nothing in it can't be written
	}
	return pool.SetNotes(ctx, r.Object, map[string][]byte{removal.ID: text})
}

// Read returns the removals of a pool, the oldest first; and the images of those
// that can't be read, for example as another version wrote them. The errors are
// those of Notes.
func (r Removals) Read(ctx context.Context, pool rbd.Notes) (removals []Removal, unreadable []string, err error) {
	notes, err := pool.Notes(ctx, r.Object)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range slices.Sorted(maps.Keys(notes)) {
		removal := Removal{ID: id}
		if err := json.Unmarshal(notes[id], &removal); err != nil || removal.Image == "" || removal.At.IsZero() || removal.Keep < 0 {
			unreadable = append(unreadable, id)
			continue
		}
		removals = append(removals, removal)
	}
	slices.SortStableFunc(removals, func(a, b Removal) int { return a.At.Compare(b.At) })
	return removals, unreadable, nil
}

// Clear removes the removals of images; that there is none is no error. The
// errors are those of RemoveNotes.
func (r Removals) Clear(ctx context.Context, pool rbd.Notes, ids ...string) error {
	return clearNotes(ctx, pool, r.Object, ids)
}
