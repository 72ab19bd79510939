// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Removal is a pending deletion: the image of a deleted volume is in the trash, or about to
// be moved there, and will be removed. The provisioner writes it before the move and clears
// it after the removal. An image in the trash without one is not the provisioner's.
type Removal struct {
	// ID is the ID of the image, and the key of its pending deletion.
	ID string `json:"-"`
	// Image is the name that the image had, Volume that of its PersistentVolume.
	Image  string `json:"image"`
	Volume string `json:"volume"`
	// At is when the move began, by the clock of the replica that began it.
	At time.Time `json:"at"`
	// Keep is how long the trash keeps the image.
	Keep time.Duration `json:"keep,omitempty"`
	// SizeBytes is the image's size, Parent the ID of the image that it is a clone of;
	// empty for none.
	SizeBytes uint64 `json:"sizeBytes"`
	Parent    string `json:"parent,omitempty"`
}

// Due returns the earliest time at which the image may be removed.
func (r Removal) Due() time.Time { return r.At.Add(r.Keep) }

// Removals are the pending deletions of a Journal.
type Removals struct {
	// Object is the object in each pool that holds them.
	Object string
}

// Write writes a pending deletion and replaces any for the same image. Its errors are those
// of SetNotes.
func (r Removals) Write(ctx context.Context, pool rbd.Notes, removal Removal) error {
	return writeNote(ctx, pool, r.Object, removal.ID, removal)
}

// Read returns the pending deletions of a pool, the oldest first, and the image IDs of
// unreadable ones: another version may have written those, for example. Its errors are
// those of Notes.
func (r Removals) Read(ctx context.Context, pool rbd.Notes) (removals []Removal, unreadable []string, err error) {
	removals, unreadable, err = readNotes(ctx, pool, r.Object, parseRemoval)
	slices.SortStableFunc(removals, func(a, b Removal) int { return a.At.Compare(b.At) })
	return removals, unreadable, err
}

// parseRemoval reads the pending deletion of an image, and reports whether it is complete.
func parseRemoval(id string, text []byte) (r Removal, ok bool) {
	r.ID = id
	err := json.Unmarshal(text, &r)
	return r, err == nil && r.Image != "" && !r.At.IsZero() && r.Keep >= 0
}

// Clear removes the pending deletions of images. A missing one is not an error. Its errors
// are those of RemoveNotes.
func (r Removals) Clear(ctx context.Context, pool rbd.Notes, ids ...string) error {
	return clearNotes(ctx, pool, r.Object, ids)
}
