// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"sync"

	"ceph.com/rbd-provisioner/provisioner/journal"
)

// imageLocks lets operations on the same image run one after the other: making
// it for a claim, and removing what an earlier attempt left of it. The zero
// imageLocks is ready.
type imageLocks struct {
	mu sync.Mutex // guards locks, and each one's users
	// locks holds the images that somebody has locked or waits for.
	locks map[imageKey]*imageLock
}

type imageKey struct {
	place journal.Place
	image string
}

type imageLock struct {
	held  chan struct{} // of capacity 1, full while the image is locked
	users int
}

// lock waits for an image, and returns the function that unlocks it, to be
// called once. Each operation is bounded by the deadlines of its calls, so the
// wait is too.
func (l *imageLocks) lock(place journal.Place, image string) (unlock func()) {
	key := imageKey{place, image}
	l.mu.Lock()
	one := l.locks[key]
	if one == nil {
		one = &imageLock{held: make(chan struct{}, 1)}
		if l.locks == nil {
			l.locks = map[imageKey]*imageLock{}
		}
		l.locks[key] = one
	}
	one.users++
	l.mu.Unlock()

	one.held <- struct{}{}
	return func() {
		<-one.held
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(l.locks, key)
		}
	}
}
