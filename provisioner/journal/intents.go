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

// Intent says for which claim an image is made. It is written before the image
// is made, and cleared once its volume is saved.
type Intent struct {
	// Image is the name of the image, and the intent's.
	Image string `json:"-"`
	// Namespace, Claim and ClaimUID are those of the claim.
	Namespace string `json:"namespace"`
	Claim     string `json:"claim"`
	ClaimUID  string `json:"claimUID"`
	// Volume is the name that the PersistentVolume gets.
	Volume string `json:"volume"`
	// SizeBytes and DataPool are those of the image.
	SizeBytes int64  `json:"sizeBytes"`
	DataPool  string `json:"dataPool,omitempty"`
	// SourceID and SourceVolume are, for a clone, the ID of the image that it is
	// made from, which may have a snapshot for that, and the volume of that image.
	SourceID     string `json:"sourceID,omitempty"`
	SourceVolume string `json:"sourceVolume,omitempty"`
	// SourceFSType and SourceBytes are that volume's file system and capacity.
	SourceFSType string `json:"sourceFSType,omitempty"`
	SourceBytes  int64  `json:"sourceBytes,omitempty"`
}

// Intents are those of a Journal.
type Intents struct {
	// Object is the object of a pool that holds them. Without one, none are kept.
	Object string
}

// Kept reports whether intents are kept.
func (i Intents) Kept() bool { return i.Object != "" }

// Write writes an intent down, in place of one for the same image. The errors
// are those of SetNotes.
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

// Read returns the intents of a pool, in the order of their images; and the
// images of those that can't be read, for example as another version wrote them.
// The errors are those of Notes.
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

// Of returns the intent for an image, or one without an image when there is none
// that can be read. The errors are those of Notes.
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

// parseIntent reads the intent for an image, and reports whether it is one.
func parseIntent(image string, text []byte) (in Intent, ok bool) {
	in.Image = image
	err := json.Unmarshal(text, &in)
	return in, err == nil && in.Namespace != "" && in.Claim != "" && in.ClaimUID != "" && in.Volume != ""
}

// Clear removes the intents for images; that there is none is no error. The
// errors are those of RemoveNotes.
func (i Intents) Clear(ctx context.Context, pool rbd.Notes, images ...string) error {
	if !i.Kept() {
		return nil
	}
	return clearNotes(ctx, pool, i.Object, images)
}
