// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"slices"
	"sync"
	"time"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	// purgeWidth is in how many pools images are removed from the trash at the
	// same time; in each it is one at a time.
	purgeWidth = 4
	// purgePatience is how long the removal of an image gives way to claims and
	// volumes. Nobody waits for it, but for the room that the image takes.
	purgePatience = 10 * time.Second
	// purgeQuiet is how long nothing has happened to claims and volumes when it
	// begins. Ceph's manager takes a hundred times the CPU for an image that its
	// volume's deletion does, of the cores that may serve claims, too.
	purgeQuiet = time.Second
	// purgeRetry is when something that did not go well is tried again; the time
	// doubles up to purgeRetryCap.
	purgeRetry    = 10 * time.Second
	purgeRetryCap = 5 * time.Minute
)

// purger knows which images in the trash of which pools are to be removed. The
// zero purger is ready, and safe for concurrent use.
type purger struct {
	mu     sync.Mutex // guards all that follows
	places map[journal.Place]*purgePlace
}

// purgePlace is a pool with images to remove. One goroutine at a time works in
// it, and owns its fields but those that say otherwise.
type purgePlace struct {
	// location opens it, items are by image ID; guarded by purger.mu, as is
	// working.
	location volume.Location
	items    map[string]*purgeItem
	working  bool

	// again is before when nothing is tried here, since it would fail.
	again   time.Time
	backoff time.Duration
	said    bool
	// managerAfter is when Ceph's manager is asked again, managerSaid that the log
	// has why it is not.
	managerAfter time.Time
	managerSaid  bool
}

// purgeItem is an image to remove. Who works in its place owns it.
type purgeItem struct {
	removal journal.Removal
	// due is when it is looked at next, woken that wake has brought that forward;
	// guarded by purger.mu.
	due     time.Time
	woken   bool
	backoff time.Duration
	// absent is since when it is not in the trash; zero while it is.
	absent time.Time
	// by names who was last asked to remove it; empty for nobody.
	by string
	// ours is from when on it is removed here; zero if Ceph's manager has not been
	// asked to.
	ours time.Time
	// said says that the log has why it stays.
	said bool
	// told says that a volume that names it again was told.
	told bool
}

// delay sets off what is tried again, longer each time.
func delay(backoff *time.Duration) time.Duration {
	*backoff = min(max(2**backoff, purgeRetry), purgeRetryCap)
	return *backoff
}

// add says that an image is to be removed. The location is how its pool was
// opened.
func (p *purger) add(place journal.Place, location volume.Location, removal journal.Removal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.places == nil {
		p.places = map[journal.Place]*purgePlace{}
	}
	in := p.places[place]
	if in == nil {
		in = &purgePlace{items: map[string]*purgeItem{}}
		p.places[place] = in
	}
	in.location = location
	// One that was restored since, and deleted again, has a removal anew.
	if known := in.items[removal.ID]; known == nil || !known.removal.At.Equal(removal.At) {
		in.items[removal.ID] = &purgeItem{removal: removal, due: removal.Due()}
	}
}

// begin returns the places where something is due and nobody works yet, at most
// as many as may be worked in; the caller works in all of them, and calls end for
// each.
func (p *purger) begin(now time.Time) map[journal.Place]*purgePlace {
	p.mu.Lock()
	defer p.mu.Unlock()
	working := 0
	for _, in := range p.places {
		if in.working {
			working++
		}
	}
	begun := map[journal.Place]*purgePlace{}
	for place, in := range p.places {
		if working+len(begun) == purgeWidth {
			break
		}
		if !in.working && !now.Before(in.again) && in.hasDue(now) {
			in.working = true
			begun[place] = in
		}
	}
	return begun
}

func (in *purgePlace) hasDue(now time.Time) bool {
	for _, item := range in.items {
		if !now.Before(item.due) {
			return true
		}
	}
	return false
}

func (p *purger) end(place journal.Place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.places[place].working = false
}

// due returns how a place is opened and what is due there, the oldest first.
func (p *purger) due(in *purgePlace, now time.Time) (volume.Location, []*purgeItem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var due []*purgeItem
	for _, item := range in.items {
		if now.Before(item.due) {
			continue
		}
		if item.woken {
			// What kept it from being removed here, the manager failed with, too.
			item.ours, item.woken = now, false
		}
		due = append(due, item)
	}
	slices.SortFunc(due, func(a, b *purgeItem) int { return a.due.Compare(b.due) })
	return in.location, due
}

// postpone says when an image is looked at next. One that was woken since it was taken
// up comes at once: the last clone of it may have gone in the same round.
func (p *purger) postpone(item *purgeItem, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !item.woken {
		item.due = until
	}
}

// wake says that an image may have no clones any more: if it is to be removed, that
// is tried now.
func (p *purger) wake(place journal.Place, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	in := p.places[place]
	if in == nil {
		return
	}
	if item := in.items[id]; item != nil && item.removal.Due().Before(item.due) {
		item.due, item.woken = item.removal.Due(), true
	}
}

// forget drops images that are settled.
func (p *purger) forget(in *purgePlace, settled []*purgeItem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, item := range settled {
		if in.items[item.removal.ID] == item {
			delete(in.items, item.removal.ID)
		}
	}
}

// counts returns how many images are to be removed now, and how many are kept.
func (p *purger) counts(now time.Time) (waiting, kept int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, in := range p.places {
		for _, item := range in.items {
			if now.Before(item.removal.Due()) {
				kept++
			} else {
				waiting++
			}
		}
	}
	return waiting, kept
}
