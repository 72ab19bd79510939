// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"errors"
	"time"
)

// Config says how long a Connector waits.
type Config struct {
	// Timeout bounds one call to a cluster, beside the call's context. Rounded up to whole
	// seconds, it is also librados's limit for one message to a monitor. Zero means
	// DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout is Config's.
const DefaultTimeout = 30 * time.Second

// idleTimeout is how long an unused connection stays open.
const idleTimeout = time.Minute

// grace is how much longer than Config.Timeout a call may take. librados counts the same
// time for monitors, and so normally gives up on them first: then no call runs on.
const grace = time.Second

// maxAbandoned is how many calls to a pool may run on, per connection, after their
// callers gave up. Each takes a thread until its OSD answers, and while an OSD is down
// there may be one more each minute.
const maxAbandoned = 64

func (c Config) withDefaults() (Config, error) {
	if c.Timeout < 0 {
		return c, errors.New("timeouts of Ceph calls must not be negative")
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	return c, nil
}

// timeoutSeconds is Timeout in the unit of librados's options, where zero would mean no
// timeout.
func (c Config) timeoutSeconds() int64 {
	return max(1, int64((c.Timeout+time.Second-1)/time.Second))
}
