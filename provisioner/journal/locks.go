// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"sync"
	"time"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Locks lets operations on the same image run one after the other: making it for a
// claim, and removing what an earlier attempt left of it. The zero Locks is ready, and
// safe for concurrent use.
type Locks struct {
	mu sync.Mutex // guards locks, and each one's users
	// locks holds the images that somebody has locked or waits for.
	locks map[volume.ImageID]*lock
}

type lock struct {
	held  chan struct{} // of capacity 1, full while the image is locked
	users int
}

// Lock waits for an image, and returns the function that unlocks it, to be called
// once. Each operation is bounded by the deadlines of its calls, so the wait is too.
func (l *Locks) Lock(image volume.ImageID) (unlock func()) {
	one := l.use(image)
	one.held <- struct{}{}
	return func() { l.unlock(image, one) }
}

// LockWithin is Lock for those who have something better to do than to wait longer.
func (l *Locks) LockWithin(image volume.ImageID, wait time.Duration) (unlock func(), locked bool) {
	one := l.use(image)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case one.held <- struct{}{}:
		return func() { l.unlock(image, one) }, true
	case <-timer.C:
		l.leave(image, one)
		return nil, false
	}
}

func (l *Locks) unlock(image volume.ImageID, one *lock) {
	<-one.held
	l.leave(image, one)
}

// use counts a user of an image in, leave out.
func (l *Locks) use(image volume.ImageID) *lock {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.locks[image]
	if one == nil {
		one = &lock{held: make(chan struct{}, 1)}
		if l.locks == nil {
			l.locks = map[volume.ImageID]*lock{}
		}
		l.locks[image] = one
	}
	one.users++
	return one
}

func (l *Locks) leave(image volume.ImageID, one *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(l.locks, image)
	}
}
