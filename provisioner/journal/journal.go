// SPDX-License-Identifier: Apache-2.0

// Package journal remembers which images are about to be made and which are about
// to be removed, in Ceph, beside them: what a process that is killed leaves behind
// is known to the next one, also when claim and volume are gone by then. It owns
// how intents and removals are written down, which of them are in flight, and which
// images this process works on; what becomes of them is decided elsewhere.
package journal

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Journal is that of one provisioner of one Kubernetes cluster, in whatever pool.
// Others that share a pool have journals of their own.
type Journal struct {
	Intents  Intents
	Removals Removals
	// Locks are those of images that this process works on.
	Locks    Locks
	InFlight *InFlight
}

// unknownCluster stands for a Kubernetes cluster whose identity may not be read.
// That several share their removals then is harmless: each says which image it is
// about, and when that may go.
const unknownCluster = "unknown"

// New returns the journal of a provisioner with a name and an identity, in the
// Kubernetes cluster with a UID. Without a UID, no intents are kept: an image whose
// making is cut off, and whose claim is then deleted, is known to nobody.
func New(clusterUID, name, identity string) *Journal {
	j := &Journal{InFlight: newInFlight(clusterUID != "")}
	if clusterUID != "" {
		j.Intents.Object = objectName("intents", clusterUID, name, identity)
	} else {
		clusterUID = unknownCluster
	}
	j.Removals.Object = objectName("removals", clusterUID, name, identity)
	return j
}

// objectName names the object of a pool that holds notes. Name and identity may have
// any characters, so they are hashed.
func objectName(what, clusterUID, name, identity string) string {
	sum := sha256.Sum256([]byte(name + "\x00" + identity))
	return fmt.Sprintf("rbd_provisioner.%s.%s.%x", what, clusterUID, sum[:8])
}

// Settle clears the intents for images of which nothing is left to do. Before one was
// made, the removal of a half-made one of its name may have been cut off: that is ended
// first, since somebody looks only as long as there is an intent. The errors are those
// of FinishRemovals and RemoveNotes.
func (j *Journal) Settle(ctx context.Context, pool Settler, id volume.PoolID, images ...string) error {
	if err := pool.FinishRemovals(ctx, images...); err != nil {
		return err
	}
	if err := j.Intents.Clear(ctx, pool, images...); err != nil {
		return err
	}
	j.InFlight.cleared(id, images...)
	return nil
}

// Settler is what Settle needs of a pool.
type Settler interface {
	rbd.Notes
	FinishRemovals(ctx context.Context, names ...string) error
}

// clearAtOnce is how many notes one call clears: an OSD does one call in one go.
const clearAtOnce = 500

func clearNotes(ctx context.Context, pool rbd.Notes, object string, keys []string) error {
	for part := range slices.Chunk(keys, clearAtOnce) {
		if err := pool.RemoveNotes(ctx, object, part...); err != nil {
			return err
		}
	}
	return nil
}

// Entry is the making of one image that is under way.
type Entry struct {
	journal *Journal
	volume  string
	image   volume.ImageID
	unlock  func()
}

// Begin locks the image of an intent and says that it is in flight. It waits for others
// who work on the image. The caller must End it.
func (j *Journal) Begin(pool volume.PoolID, in Intent) *Entry {
	image := pool.Image(in.Image)
	e := &Entry{journal: j, volume: in.Volume, image: image, unlock: j.Locks.Lock(image)}
	j.InFlight.begin(in.Volume, image)
	return e
}

// End unlocks the image. Without an error it is in flight until its volume is saved.
// Whatever goes wrong before, the library may ask again or forget the claim: package
// orphan waits for the one, and cleans up after the other.
func (e *Entry) End(err error) {
	if err != nil {
		e.journal.InFlight.end(e.volume, e.image, false)
	}
	e.unlock()
}
