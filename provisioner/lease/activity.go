// SPDX-License-Identifier: Apache-2.0

package lease

import (
	"sync"
	"time"
)

// Activity counts the operations that people wait for, so that background work can give way
// to them. The zero Activity is ready to use, and safe for concurrent use.
type Activity struct {
	mu      sync.Mutex
	running int
	ended   time.Time // when the last one ended
}

// Begin counts an operation as running. Call end once when it is over.
func (a *Activity) Begin() (end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.running--
		a.ended = time.Now()
	}
}

// Quiet reports whether no operation is running and none has ended within that time. The
// time bridges the short gaps in a series of operations.
func (a *Activity) Quiet(within time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running == 0 && time.Since(a.ended) >= within
}
