// SPDX-License-Identifier: Apache-2.0

package journal

import (
	"sync"
	"time"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Locks makes operations on the same image run one after the other: making it for a claim,
// and removing an attempt's leftovers. The zero Locks is ready, and safe for concurrent use.
type Locks struct {
	// held has a channel for each locked image, which is closed when it is unlocked.
	held sync.Map
}

// Lock waits for an image, and returns the function that unlocks it, to be called once. The
// deadlines of its calls bound each operation, and so the wait.
func (l *Locks) Lock(image volume.ImageID) (unlock func()) {
	unlock, _ = l.lock(image, nil)
	return unlock
}

// LockWithin is Lock with a time limit. It reports whether it locked the image.
func (l *Locks) LockWithin(image volume.ImageID, wait time.Duration) (unlock func(), locked bool) {
	return l.lock(image, time.After(wait))
}

func (l *Locks) lock(image volume.ImageID, tooLate <-chan time.Time) (unlock func(), locked bool) {
	mine := make(chan struct{})
	for {
		other, taken := l.held.LoadOrStore(image, mine)
		if !taken {
			return func() { l.held.Delete(image); close(mine) }, true
		}
		select {
		case <-other.(chan struct{}):
		case <-tooLate:
			return nil, false
		}
	}
}
