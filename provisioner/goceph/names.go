// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"sync"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// imageName names an image, whichever connection leads to it.
type imageName struct {
	fsid  string
	pool  int64
	image string
}

// nameLocks makes calls that lock the same name run one after the other, in the order in
// which they came. The zero nameLocks is ready.
type nameLocks[K comparable] struct {
	mu sync.Mutex // guards waiting, and each lock's users
	// waiting holds the names that a call has locked or waits for.
	waiting map[K]*nameLock
}

type nameLock struct {
	held  chan struct{} // of capacity 1, full while the name is locked
	users int
}

// lock locks a name and returns the function that unlocks it, to be called once. If ctx
// ends first, the error wraps ErrTimeout: the call that holds the name still runs.
func (n *nameLocks[K]) lock(ctx context.Context, name K) (unlock func(), err error) {
	n.mu.Lock()
	l := n.waiting[name]
	if l == nil {
		l = &nameLock{held: make(chan struct{}, 1)}
		if n.waiting == nil {
			n.waiting = map[K]*nameLock{}
		}
		n.waiting[name] = l
	}
	l.users++
	n.mu.Unlock()

	select {
	case l.held <- struct{}{}:
		return func() {
			<-l.held
			n.leave(name, l)
		}, nil
	case <-ctx.Done():
		n.leave(name, l)
		return nil, &interrupted{rbd.ErrTimeout, context.Cause(ctx)}
	}
}

func (n *nameLocks[K]) leave(name K, l *nameLock) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(n.waiting, name)
	}
}
