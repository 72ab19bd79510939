// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"encoding/json"
	"time"
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
	// SizeBytes is the image's size, Parent the ID of the one that it is a clone of, if any.
	SizeBytes uint64 `json:"sizeBytes"`
	Parent    string `json:"parent,omitempty"`
}

// Due returns the earliest time at which the image may be removed.
func (r Removal) Due() time.Time { return r.At.Add(r.Keep) }

func (r Removal) key() string { return r.ID }

// parseRemoval reads the pending deletion of an image, and reports whether it is complete.
func parseRemoval(id string, text []byte) (r Removal, ok bool) {
	r.ID = id
	err := json.Unmarshal(text, &r)
	return r, err == nil && r.Image != "" && !r.At.IsZero() && r.Keep >= 0
}
