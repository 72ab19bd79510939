// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"context"
	"encoding/json"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Intent says which claim an image is made for. The provisioner writes it before it makes
// the image, and clears it once the volume is saved.
type Intent struct {
	// Image is the name of the image, and the intent's key.
	Image string `json:"-"`
	// Namespace, Claim and ClaimUID identify the claim.
	Namespace string `json:"namespace"`
	Claim     string `json:"claim"`
	ClaimUID  string `json:"claimUID"`
	// Volume is the future name of the PersistentVolume.
	Volume string `json:"volume"`
	// SizeBytes and DataPool are those of the image.
	SizeBytes int64  `json:"sizeBytes"`
	DataPool  string `json:"dataPool,omitempty"`
	// SourceID and SourceVolume are, for a clone, the ID of its source image, which may
	// have a snapshot for it, and the volume of that image.
	SourceID     string `json:"sourceID,omitempty"`
	SourceVolume string `json:"sourceVolume,omitempty"`
	// SourceFSType and SourceBytes are that volume's file system and capacity.
	SourceFSType string `json:"sourceFSType,omitempty"`
	SourceBytes  int64  `json:"sourceBytes,omitempty"`
}

// Intents are the intents of a Journal.
type Intents struct {
	// Object is the object in each pool that holds them. Without one, the journal keeps
	// none.
	Object string
}

// Write writes an intent and replaces any for the same image. Its errors are those of
// SetNotes.
func (i Intents) Write(ctx context.Context, pool rbd.Notes, in Intent) error {
	return writeNote(ctx, pool, i.Object, in.Image, in)
}

// Read returns the intents of a pool, sorted by image, and the images of unreadable ones:
// another version may have written those, for example. Its errors are those of Notes.
func (i Intents) Read(ctx context.Context, pool rbd.Notes) (intents []Intent, unreadable []string, err error) {
	return readNotes(ctx, pool, i.Object, parseIntent)
}

// Of returns the intent for an image, or the zero Intent if there is none or it is
// unreadable. Its errors are those of Notes.
func (i Intents) Of(ctx context.Context, pool rbd.Notes, image string) (Intent, error) {
	found, _, err := readNotes(ctx, pool, i.Object, parseIntent, image)
	if err != nil || len(found) == 0 {
		return Intent{}, err
	}
	return found[0], nil
}

// parseIntent reads the intent for an image, and reports whether it is complete.
func parseIntent(image string, text []byte) (in Intent, ok bool) {
	in.Image = image
	err := json.Unmarshal(text, &in)
	return in, err == nil && in.Namespace != "" && in.Claim != "" && in.ClaimUID != "" && in.Volume != ""
}

// Clear removes the intents for images. A missing one is not an error. Its errors are those
// of RemoveNotes.
func (i Intents) Clear(ctx context.Context, pool rbd.Notes, images ...string) error {
	return clearNotes(ctx, pool, i.Object, images)
}
