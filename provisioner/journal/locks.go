// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"sync"
	"time"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Locks makes operations on the same image run one after the other: making it for a claim,
// and removing the leftovers of an earlier attempt. The zero Locks is ready to use, and
// safe for concurrent use.
type Locks struct {
	mu sync.Mutex // guards locks, and the users of each
	// locks holds the images that are locked or waited for.
	locks map[volume.ImageID]*lock
}

type lock struct {
	held  chan struct{} // capacity 1, full while the image is locked
	users int
}

// Lock waits for an image, and returns the function that unlocks it, to be called once. The
// deadlines of its calls bound each operation, and so the wait.
func (l *Locks) Lock(image volume.ImageID) (unlock func()) {
	one := l.use(image)
	one.held <- struct{}{}
	return func() { l.unlock(image, one) }
}

// LockWithin is Lock with a time limit. It reports whether it locked the image.
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

// use counts one more user of an image's lock; leave counts one less.
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
