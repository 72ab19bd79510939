// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"sync"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// InFlight knows the images that this process is making, and those whose volume is on its
// way into the API. All other intents come from attempts that were cut off or went wrong.
// It is safe for concurrent use.
type InFlight struct {
	mu sync.Mutex // guards images and saved
	// images are by volume: a claim that moves on to another pool has left the first one.
	images map[string]volume.ImageID
	// saved has the images with a saved volume and an intent that is not cleared yet.
	saved map[volume.ImageID]bool
	ended func(volume.PoolID)
}

// OnEnd sets f, which is called with an intent's pool when the intent is no longer in
// flight: its volume was saved, the attempt failed, or the claim moved on to another pool.
// Call OnEnd before anything begins.
func (i *InFlight) OnEnd(f func(volume.PoolID)) { i.ended = f }

func (i *InFlight) begin(volumeName string, image volume.ImageID) {
	i.mu.Lock()
	before, found := i.images[volumeName]
	i.images[volumeName] = image
	delete(i.saved, image)
	i.mu.Unlock()
	if found && before != image {
		i.ended(before.PoolID)
	}
}

func (i *InFlight) end(volumeName string, image volume.ImageID, saved bool) {
	i.mu.Lock()
	found := i.images[volumeName] == image
	if found {
		delete(i.images, volumeName)
		if saved {
			i.saved[image] = true
		}
	}
	i.mu.Unlock()
	if found {
		i.ended(image.PoolID)
	}
}

// Has reports whether an intent of a pool is in flight, or was until its volume was saved.
func (i *InFlight) Has(pool volume.PoolID, in Intent) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	image := pool.Image(in.Image)
	return i.images[in.Volume] == image || i.saved[image]
}

// Saved records that an image's volume is saved. It is cheap: call it for each in the cache.
func (i *InFlight) Saved(volumeName string, image volume.ImageID) { i.end(volumeName, image, true) }

// SavedIn returns the names of a pool's images that were in flight until their volumes were
// saved. Their intents may be cleared without another look.
func (i *InFlight) SavedIn(pool volume.PoolID) []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var names []string
	for image := range i.saved {
		if image.PoolID == pool {
			names = append(names, image.Name)
		}
	}
	return names
}

// cleared forgets saved images whose intents were cleared.
func (i *InFlight) cleared(pool volume.PoolID, images ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, image := range images {
		delete(i.saved, pool.Image(image))
	}
}
