// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"maps"
	"slices"
	"sync"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Place is a pool, whoever opens it.
type Place struct {
	// FSID is the identity of the Ceph cluster.
	FSID string
	Pool string
}

// Ledger knows which intents this process takes care of: those that it works on,
// and those whose volume is on its way into the API. All others are left from
// something that was cut off or went wrong. The zero Ledger is ready, and safe
// for concurrent use.
type Ledger struct {
	mu sync.Mutex // guards what follows
	// held are the intents under care, by volume: a claim that is tried in
	// another pool has left the first one.
	held map[string]entry
	// saved are those whose volume is saved, until they are cleared.
	saved map[Place]map[string]volume.Location
	// releases counts for each place the intents that went out of care.
	releases map[Place]int
}

type entry struct {
	place    Place
	image    string
	location volume.Location
}

// Batch is what may be cleared in one place.
type Batch struct {
	Place Place
	// Location opens it.
	Location volume.Location
	Images   []string
}

// Hold takes an intent into care. The location is how its pool was opened.
func (l *Ledger) Hold(place Place, location volume.Location, in Intent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[string]entry{}
	}
	if before, found := l.held[in.Volume]; found && (before.place != place || before.image != in.Image) {
		l.countRelease(before.place)
	}
	l.held[in.Volume] = entry{place, in.Image, location}
	delete(l.saved[place], in.Image)
}

// Release gives an intent out of care without knowing what became of the image.
func (l *Ledger) Release(in Intent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, found := l.held[in.Volume]; found {
		delete(l.held, in.Volume)
		l.countRelease(e.place)
	}
}

func (l *Ledger) countRelease(place Place) {
	if l.releases == nil {
		l.releases = map[Place]int{}
	}
	l.releases[place]++
}

// Holds reports whether an intent is in care.
func (l *Ledger) Holds(place Place, in Intent) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, found := l.held[in.Volume]
	return found && e.place == place && e.image == in.Image
}

// Releases returns a number that changes whenever an intent of a place goes out
// of care.
func (l *Ledger) Releases(place Place) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.releases[place]
}

// Saved says that a volume with an image is saved: an intent for it, if it is in
// care, may be cleared. It is cheap, to be called for every volume that is seen.
func (l *Ledger) Saved(place Place, volumeName, image string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, found := l.held[volumeName]
	if !found || e.place != place || e.image != image {
		return
	}
	delete(l.held, volumeName)
	if l.saved == nil {
		l.saved = map[Place]map[string]volume.Location{}
	}
	if l.saved[place] == nil {
		l.saved[place] = map[string]volume.Location{}
	}
	l.saved[place][image] = e.location
}

// Batches returns what may be cleared.
func (l *Ledger) Batches() []Batch {
	l.mu.Lock()
	defer l.mu.Unlock()
	var batches []Batch
	for place, images := range l.saved {
		if len(images) == 0 {
			continue
		}
		b := Batch{Place: place, Images: slices.Sorted(maps.Keys(images))}
		// Any of them opened the pool.
		b.Location = images[b.Images[len(b.Images)-1]]
		batches = append(batches, b)
	}
	return batches
}

// Cleared says that a batch was cleared.
func (l *Ledger) Cleared(b Batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, image := range b.Images {
		delete(l.saved[b.Place], image)
	}
	if len(l.saved[b.Place]) == 0 {
		delete(l.saved, b.Place)
	}
}
