// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"errors"
	"time"
)

// Config says how long a Connector waits.
type Config struct {
	// Timeout bounds one call to a cluster. It is also what librados is told
	// for one message to a monitor, rounded up to whole seconds. A call whose
	// context ends earlier returns earlier. Zero means DefaultTimeout.
	Timeout time.Duration
	// IdleTimeout is how long a connection stays open that nobody uses. Zero
	// means DefaultIdleTimeout.
	IdleTimeout time.Duration
}

// Defaults of Config.
const (
	DefaultTimeout     = 30 * time.Second
	DefaultIdleTimeout = time.Minute
)

// grace is what a call gets beyond Config.Timeout, so that librados, which counts
// the same time for monitors, normally is the one to give up on them: then nothing
// runs on.
const grace = time.Second

// maxAbandoned is how many calls to a pool may run on, by one connection, after their
// callers gave up. Each takes a thread until its OSD answers, and there may be a call a
// minute for as long as an OSD is down.
const maxAbandoned = 64

func (c Config) withDefaults() (Config, error) {
	if c.Timeout < 0 || c.IdleTimeout < 0 {
		return c, errors.New("timeouts of Ceph calls must not be negative")
	}
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = DefaultIdleTimeout
	}
	return c, nil
}

// timeoutSeconds is Timeout as librados's options take it. Zero would mean no
// timeout at all there.
func (c Config) timeoutSeconds() int64 {
	return max(1, int64((c.Timeout+time.Second-1)/time.Second))
}
