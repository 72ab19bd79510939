// SPDX-License-Identifier: Apache-2.0

// Package journal remembers which images are about to be made and which are about
// to be removed, in Ceph, beside them: what a process that is killed leaves behind
// is known to the next one, also when claim and volume are gone by then. It owns
// how intents and removals are written down, and which intents this process takes
// care of; what becomes of them, package provisioner decides.
package journal

import (
	"context"
	"crypto/sha256"
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

// Journal is where the intents of one provisioner of one Kubernetes cluster are,
// in whatever pool. Others that share a pool have journals of their own.
type Journal struct {
	// Object is the object of the pool that holds them, as Object returns it.
	Object string
}

// clearAtOnce is how many notes one call clears: an OSD does one call in one
// go.
const clearAtOnce = 500

// Object names the journal of a provisioner with a name and an identity, in the
// Kubernetes cluster with a UID. Name and identity may have any characters, so
// they are hashed.
func Object(clusterUID, name, identity string) string {
	return objectName("intents", clusterUID, name, identity)
}

func objectName(what, clusterUID, name, identity string) string {
	sum := sha256.Sum256([]byte(name + "\x00" + identity))
	return fmt.Sprintf("rbd_provisioner.%s.%s.%x", what, clusterUID, sum[:8])
}

// Write writes an intent down, in place of one for the same image. The errors
// are those of SetNotes.
func (j Journal) Write(ctx context.Context, pool rbd.Notes, in Intent) error {
	text, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("intent for image %q: %w", in.Image, err)
	}
	return pool.SetNotes(ctx, j.Object, map[string][]byte{in.Image: text})
}

// Read returns the intents of a pool, in the order of their images; and the
// images of those that can't be read, for example as another version wrote them.
// The errors are those of Notes.
func (j Journal) Read(ctx context.Context, pool rbd.Notes) (intents []Intent, unreadable []string, err error) {
	notes, err := pool.Notes(ctx, j.Object)
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
func (j Journal) Of(ctx context.Context, pool rbd.Notes, image string) (Intent, error) {
	notes, err := pool.Notes(ctx, j.Object)
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
func (j Journal) Clear(ctx context.Context, pool rbd.Notes, images ...string) error {
	return clearNotes(ctx, pool, j.Object, images)
}

func clearNotes(ctx context.Context, pool rbd.Notes, object string, keys []string) error {
	for part := range slices.Chunk(keys, clearAtOnce) {
		if err := pool.RemoveNotes(ctx, object, part...); err != nil {
			return err
		}
	}
	return nil
}
