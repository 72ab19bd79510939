// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"slices"
	"sync"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// InFlight knows the images that this process makes, and those whose volume is on its way
// into the API. All other intents were left by something that was cut off or went wrong.
// It is safe for concurrent use.
type InFlight struct {
	// kept says that there are intents; nothing is remembered otherwise.
	kept bool

	mu sync.Mutex // guards images and saved
	// images are by volume: a claim that is tried in another pool has left the first one.
	images map[string]volume.ImageID
	// saved are the images whose volume was saved and whose intent was not cleared yet.
	saved map[volume.ImageID]bool
	ended func(volume.PoolID)
}

func newInFlight(kept bool) *InFlight {
	return &InFlight{kept: kept, images: map[string]volume.ImageID{}, saved: map[volume.ImageID]bool{}, ended: func(volume.PoolID) {}}
}

// OnEnd has f told of each intent that is not in flight any more, by its pool: its volume
// was saved, or the attempt has failed. Call it before anything begins.
func (i *InFlight) OnEnd(f func(volume.PoolID)) { i.ended = f }

func (i *InFlight) begin(volumeName string, image volume.ImageID) {
	if !i.kept {
		return
	}
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
	}
	if found && saved {
		i.saved[image] = true
	}
	i.mu.Unlock()
	if found {
		i.ended(image.PoolID)
	}
}

// Has reports whether an intent of a pool is in flight.
func (i *InFlight) Has(pool volume.PoolID, in Intent) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.images[in.Volume] == pool.Image(in.Image)
}

// Saved says that a volume with an image is saved. It is cheap, to be called for every
// volume that is seen.
func (i *InFlight) Saved(volumeName string, image volume.ImageID) { i.end(volumeName, image, true) }

// IsSaved reports whether an image was in flight and its volume was saved, so that its
// intent may be cleared without a further look.
func (i *InFlight) IsSaved(image volume.ImageID) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.saved[image]
}

// SavedIn returns the images of a pool that IsSaved is true of, by name.
func (i *InFlight) SavedIn(pool volume.PoolID) []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var names []string
	for image := range i.saved {
		if image.PoolID == pool {
			names = append(names, image.Name)
		}
	}
	slices.Sort(names)
	return names
}

// cleared says that the intents for images are cleared.
func (i *InFlight) cleared(pool volume.PoolID, images ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, image := range images {
		delete(i.saved, pool.Image(image))
	}
}
