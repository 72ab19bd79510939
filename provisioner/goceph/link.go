// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"errors"
	"fmt"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// conn is a connection to a cluster. Its methods block; their errors carry librados's
// error number.
type conn interface {
	fsid() string
	// version asks a monitor.
	version() (string, error)
	openPool(name string) (ioctx, error)
	// shutdown ends the connection. All its pools are closed by then.
	shutdown()
}

// ioctx is librados's handle of an open pool. The calls of package rbd, all but
// HandOverTrashed, block whatever becomes of their contexts, and their errors carry the
// error number. It is safe for concurrent use, but not during or after close.
type ioctx interface {
	rbd.Images
	rbd.Clones
	rbd.Notes
	TrashImage(ctx context.Context, name string, keep time.Duration) error
	Trashed(ctx context.Context, id string) (rbd.Trashed, error)
	RemoveTrashed(ctx context.Context, id string) error
	ShrinkTrashed(ctx context.Context, id string, objects uint64) (uint64, error)
	id() int64
	// close frees memory. It does no I/O.
	close()
}

// link is a shared connection. It stays in Connector.links until it is shut down.
type link struct {
	creds rbd.Credentials
	// dialed is closed once conn and err are final; one of them is set.
	dialed chan struct{}
	conn   conn
	err    error

	// The rest is guarded by Connector.mu.

	// users counts the open Clusters and Pools, and the callers that wait for dialed.
	users     int
	calls     int                   // those that librados has not returned from
	abandoned map[*running]struct{} // those of them whose callers gave up
	pools     map[*pool]struct{}    // the open ones
	// retired says that no caller may join: the connection was lost, replaced by one with
	// a newer key, or shut down.
	retired bool
	down    bool        // conn is shut down, or about to be
	idle    *time.Timer // runs while the link is unused
}

// matches reports whether the link can serve c.
func (l *link) matches(c rbd.Credentials) bool {
	return l.sameUser(c) && l.creds.Key.Equal(c.Key)
}

func (l *link) sameUser(c rbd.Credentials) bool {
	return l.creds.User == c.User && l.creds.MonHost() == c.MonHost()
}

// settle decides what happens to a link that has lost a user or a call. The caller holds
// Connector.mu.
func (c *Connector) settle(l *link) {
	switch {
	case l.conn == nil || l.down:
		// Still dialing, and open settles it afterwards; or already shut down.
	case c.closing:
		// A Cluster or Pool that was left open must not keep the process from ending.
		if l.calls == 0 {
			c.shutdown(l)
		}
	case l.users > 0 || l.calls > 0:
	case l.retired:
		c.shutdown(l)
	case l.idle == nil:
		var timer *time.Timer
		timer = time.AfterFunc(c.idleTimeout, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			// A user may have come and left again since the timer fired.
			if l.idle == timer {
				c.shutdown(l)
			}
		})
		l.idle = timer
	}
}

// use counts a user in. The caller holds Connector.mu.
func (l *link) use() {
	l.users++
	if l.idle != nil {
		l.idle.Stop()
		l.idle = nil
	}
}

// shutdown closes a link's pools, and ends its connection in a goroutine that Close waits
// for. The caller holds Connector.mu.
func (c *Connector) shutdown(l *link) {
	for p := range l.pools {
		p.dropManager()
		p.close()
	}
	l.pools = nil
	l.retired, l.down = true, true
	delete(c.links, l)
	l.idle = nil // its timer, if it still runs, then does nothing
	go func() {
		defer c.work.Done()
		l.conn.shutdown()
		c.log.V(2).Info("Closed a connection", "monitors", l.creds.MonHost(), "user", l.creds.User)
	}()
}

// end counts out a call with the translated error err. The caller holds Connector.mu.
func (c *Connector) end(l *link, err error) {
	l.calls--
	switch {
	case errors.Is(err, rbd.ErrConnectionLost):
		l.retired = true
	case errors.Is(err, rbd.ErrPermissionDenied) && len(l.abandoned) == 0:
		// A connection keeps its first caps for up to an hour: retire it, so that the
		// next attempt sees corrected ones. Not while a call waits for an OSD: the
		// connection would stay beside the next one, and they would pile up.
		l.retired = true
	}
	c.settle(l)
}

// cluster is one holder's share in a link.
type cluster struct {
	connector *Connector
	link      *link
	closed    bool // guarded by Connector.mu
}

// FSID implements rbd.Cluster.
func (cl *cluster) FSID() string { return cl.link.conn.fsid() }

// OpenPool implements rbd.Cluster.
func (cl *cluster) OpenPool(ctx context.Context, name string) (rbd.Pool, error) {
	p, err := cl.openPool(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open pool %q: %w", name, err)
	}
	return rbd.Around(p, p.operate), nil
}

func (cl *cluster) openPool(ctx context.Context, name string) (*pool, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, &interrupted{rbd.ErrTimeout, context.Cause(ctx)}
	}
	c, l := cl.connector, cl.link
	c.mu.Lock()
	if cl.closed || c.closing {
		c.mu.Unlock()
		return nil, errClosed
	}
	l.use()
	l.calls++
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout+grace)
	defer cancel()
	p := &pool{connector: c, link: l, name: name, calls: 1}
	err := run(ctx, func() error {
		io, err := l.conn.openPool(name)
		err = translate(err, rbd.ErrPoolNotFound)
		c.mu.Lock()
		defer c.mu.Unlock()
		if err != nil {
			l.users-- // p.calls stays 1: there is no handle to release
			// The user's caps may not allow an answer: see end.
			l.retired = l.retired || errors.Is(err, rbd.ErrTimeout) && len(l.pools) == 0 && len(l.abandoned) == 0
		} else {
			p.ioctx, p.number = io, io.id()
			l.pools[p] = struct{}{}
			p.calls--
			p.release() // if the caller gave up
		}
		c.end(l, err)
		return err
	})
	if err != nil {
		p.Close()
	}
	return p, err
}

// Close implements rbd.Cluster.
func (cl *cluster) Close() {
	c := cl.connector
	c.mu.Lock()
	defer c.mu.Unlock()
	if cl.closed {
		return
	}
	cl.closed = true
	cl.link.users--
	c.settle(cl.link)
}
