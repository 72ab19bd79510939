// SPDX-License-Identifier: Apache-2.0

// Package journal records, in Ceph beside the images, which images a provisioner is about
// to make and which it is about to remove. If a process is killed, the journal tells the
// next one about the leftovers, even if claim and volume are gone by then. The package
// owns the form of intents and pending deletions, which intents are in flight, and which
// images this process works on. Other packages decide what becomes of them.
package journal

import (
	"context"
	"crypto/sha256"
	"fmt"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Journal is the journal of one provisioner in one Kubernetes cluster, for all pools.
// Others that share a pool have their own journals.
type Journal struct {
	Intents  Store[Intent]
	Removals Store[Removal]
	// Locks are the locks of images that this process works on.
	Locks    Locks
	InFlight InFlight
}

// unknownCluster stands for a Kubernetes cluster whose UID the provisioner may not read.
// Several such clusters then share their pending deletions, which is harmless: each says
// which image it is about, and when that image may go.
const unknownCluster = "unknown"

// New returns the journal of the provisioner with that name and identity, in the Kubernetes
// cluster with that UID. Without a UID, the journal keeps no intents: if the making of an
// image is cut off, and its claim is then deleted, nothing knows of the image.
func New(clusterUID, name, identity string) *Journal {
	j := &Journal{
		Intents:  Store[Intent]{key: Intent.key, parse: parseIntent},
		Removals: Store[Removal]{key: Removal.key, parse: parseRemoval},
		InFlight: InFlight{images: map[string]volume.ImageID{}, saved: map[volume.ImageID]bool{}, ended: func(volume.PoolID) {}},
	}
	if clusterUID != "" {
		j.Intents.Object = objectName("intents", clusterUID, name, identity)
	} else {
		clusterUID = unknownCluster
	}
	j.Removals.Object = objectName("removals", clusterUID, name, identity)
	return j
}

// objectName names the object in a pool that holds notes. It hashes name and identity,
// because these may have any characters.
func objectName(what, clusterUID, name, identity string) string {
	sum := sha256.Sum256([]byte(name + "\x00" + identity))
	return fmt.Sprintf("rbd_provisioner.%s.%s.%x", what, clusterUID, sum[:8])
}

// Settle clears the intents for images that need no more work. Before such an image was
// made, the removal of a half-made one with its name may have been cut off. Settle finishes
// that removal first, because without an intent nothing looks for leftovers. Its errors are
// those of FinishRemovals and RemoveNotes.
func (j *Journal) Settle(ctx context.Context, pool rbd.Pool, id volume.PoolID, images ...string) error {
	if err := pool.FinishRemovals(ctx, images...); err != nil {
		return err
	}
	if err := j.Intents.Clear(ctx, pool, images...); err != nil {
		return err
	}
	j.InFlight.cleared(id, images...)
	return nil
}

// Begin locks the image of an intent and, where intents are kept, records it as in flight.
// It waits for other operations on the image. The caller must call end, which unlocks the
// image. If err is nil, the image stays in flight until its volume is saved. After an error,
// the library may ask again or forget the claim: package orphan waits for the former, and
// cleans up after the latter.
func (j *Journal) Begin(pool volume.PoolID, in Intent) (end func(err error)) {
	image := pool.Image(in.Image)
	unlock := j.Locks.Lock(image)
	if j.Intents.Object != "" {
		j.InFlight.begin(in.Volume, image)
	}
	return func(err error) {
		if err != nil {
			j.InFlight.end(in.Volume, image, false)
		}
		unlock()
	}
}
