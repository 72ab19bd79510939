// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"sync"
	"time"

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
	one := l.use(key)
	one.held <- struct{}{}
	return func() {
		<-one.held
		l.leave(key, one)
	}
}

// lockWithin is lock for who has something better to do than to wait for longer.
func (l *imageLocks) lockWithin(place journal.Place, image string, length time.Duration) (unlock func(), locked bool) {
	key := imageKey{place, image}
	one := l.use(key)
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case one.held <- struct{}{}:
		return func() {
			<-one.held
			l.leave(key, one)
		}, true
	case <-timer.C:
		l.leave(key, one)
		return nil, false
	}
}

// use counts somebody in who locks an image or waits for it, leave out.
func (l *imageLocks) use(key imageKey) *imageLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.locks[key]
	if one == nil {
		one = &imageLock{held: make(chan struct{}, 1)}
		if l.locks == nil {
			l.locks = map[imageKey]*imageLock{}
		}
		l.locks[key] = one
	}
	one.users++
	return one
}

func (l *imageLocks) leave(key imageKey, one *imageLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if one.users--; one.users == 0 {
		delete(l.locks, key)
	}
}
