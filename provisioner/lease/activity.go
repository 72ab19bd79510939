// SPDX-License-Identifier: Apache-2.0

package lease

import (
	"sync/atomic"
	"time"

	"k8s.io/utils/ptr"
)

// Activity counts the operations that people wait for, so that background work can give way
// to them. The zero Activity is ready to use, and safe for concurrent use.
type Activity struct {
	running atomic.Int64
	ended   atomic.Pointer[time.Time] // when the last one ended; nil for never
}

// Begin counts an operation as running. Call end once when it is over.
func (a *Activity) Begin() (end func()) {
	a.running.Add(1)
	return func() {
		a.ended.Store(ptr.To(time.Now()))
		a.running.Add(-1)
	}
}

// Quiet reports whether no operation is running and none has ended within that time. The
// time bridges the short gaps in a series of operations.
func (a *Activity) Quiet(within time.Duration) bool {
	// Keep this order: end stores the time before it lowers the count.
	if a.running.Load() > 0 {
		return false
	}
	ended := a.ended.Load()
	return ended == nil || time.Since(*ended) >= within
}
