// SPDX-License-Identifier: Apache-2.0

package lease

import (
	"sync/atomic"
	"time"

	"k8s.io/utils/ptr"
)

// Activity counts the operations that people wait for, so that others can give way to
// them. The zero Activity is ready, and safe for concurrent use.
type Activity struct {
	running atomic.Int64
	ended   atomic.Pointer[time.Time] // when one ended last; nil for never
}

// Begin counts an operation in and returns what counts it out again, to be called once.
func (a *Activity) Begin() (end func()) {
	a.running.Add(1)
	return func() {
		a.ended.Store(ptr.To(time.Now()))
		a.running.Add(-1)
	}
}

// Quiet reports whether no operation runs, nor has within a time. In the middle of many,
// there is none for a moment now and then.
func (a *Activity) Quiet(within time.Duration) bool {
	// In this order: what ends is noted before it is counted out.
	if a.running.Load() > 0 {
		return false
	}
	ended := a.ended.Load()
	return ended == nil || time.Since(*ended) >= within
}
