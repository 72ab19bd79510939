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

// Flattening says that an image is a clone that is to be flattened. It is written
// before the clone is made, and cleared once it depends on no other image or is
// gone.
type Flattening struct {
	// Image is the name of the clone, and the flattening's.
	Image string `json:"-"`
	// Volume is the name of its PersistentVolume.
	Volume string `json:"volume"`
	// At is when that was decided.
	At time.Time `json:"at"`
}

// Flattenings is where the flattenings of one provisioner of one Kubernetes cluster
// are, in whatever pool.
type Flattenings struct {
	// Object is the object of the pool that holds them, as FlatteningsObject
	// returns it.
	Object string
}

// FlatteningsObject names the flattenings of a provisioner like Object its journal.
func FlatteningsObject(clusterUID, name, identity string) string {
	return objectName("flattenings", clusterUID, name, identity)
}

// Write writes a flattening down, in place of one for the same image. The errors
// are those of SetNotes.
func (f Flattenings) Write(ctx context.Context, pool rbd.Notes, one Flattening) error {
	text, err := json.Marshal(one)
	if err != nil {
		return err // nothing in it can't be written
	}
	return pool.SetNotes(ctx, f.Object, map[string][]byte{one.Image: text})
}

// Read returns the flattenings of a pool, in the order of their images; and the
// images of those that can't be read, for example as another version wrote them.
// The errors are those of Notes.
func (f Flattenings) Read(ctx context.Context, pool rbd.Notes) (all []Flattening, unreadable []string, err error) {
	notes, err := pool.Notes(ctx, f.Object)
	if err != nil {
		return nil, nil, err
	}
	for _, image := range slices.Sorted(maps.Keys(notes)) {
		one := Flattening{Image: image}
		if err := json.Unmarshal(notes[image], &one); err != nil || one.Volume == "" {
			unreadable = append(unreadable, image)
			continue
		}
		all = append(all, one)
	}
	return all, unreadable, nil
}

// Clear removes the flattenings of images; that there is none is no error. The
// errors are those of RemoveNotes.
func (f Flattenings) Clear(ctx context.Context, pool rbd.Notes, images ...string) error {
	return clearNotes(ctx, pool, f.Object, images)
}
