// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

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

// Kept reports whether intents are kept.
func (i Intents) Kept() bool { return i.Object != "" }

// Write writes an intent and replaces any for the same image. Its errors are those of
// SetNotes.
func (i Intents) Write(ctx context.Context, pool rbd.Notes, in Intent) error {
	if !i.Kept() {
		return nil
	}
	text, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("intent for image %q: %w", in.Image, err)
	}
	return pool.SetNotes(ctx, i.Object, map[string][]byte{in.Image: text})
}

// Read returns the intents of a pool, sorted by image, and the images of unreadable ones:
// another version may have written those, for example. Its errors are those of Notes.
func (i Intents) Read(ctx context.Context, pool rbd.Notes) (intents []Intent, unreadable []string, err error) {
	if !i.Kept() {
		return nil, nil, nil
	}
	notes, err := pool.Notes(ctx, i.Object)
	if err != nil {
		return nil, nil, err
	}
	for _, image := range slices.Sorted(maps.Keys(notes)) {
		in, ok := parseIntent(image, notes[image])
		if !ok {
			unreadable = append(unreadable, image)
			continue
		}
		intents = append(intents, in)
	}
	return intents, unreadable, nil
}

// Of returns the intent for an image, or the zero Intent if there is none or it is
// unreadable. Its errors are those of Notes.
func (i Intents) Of(ctx context.Context, pool rbd.Notes, image string) (Intent, error) {
	if !i.Kept() {
		return Intent{}, nil
	}
	notes, err := pool.Notes(ctx, i.Object, image)
	if err != nil {
		return Intent{}, err
	}
	in, ok := parseIntent(image, notes[image])
	if !ok {
		return Intent{}, nil
	}
	return in, nil
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
	if !i.Kept() {
		return nil
	}
	return clearNotes(ctx, pool, i.Object, images)
}
