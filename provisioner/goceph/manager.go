// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// errUnanswered refuses a request to a manager that has not answered the one
// before.
var errUnanswered = errors.New("an earlier request to Ceph's manager has not been answered")

// managerConn is a connection that serves commands to a cluster's manager, and
// nothing else. A command blocks until a manager answers, however long that is.
// Errors carry librados's error number.
type managerConn interface {
	// removeTrashed puts the removal of an image in the trash on the manager's
	// list, as rbd.Trash.HandOverTrashed says.
	removeTrashed(pool, id string) error
	// shutdown ends the connection. No command is under way by then: librados
	// forgets those, and who waits for one would do so for good.
	shutdown()
}

// managers has the connections for commands to managers: at most one for each
// cluster and user, and at most one command under way on it.
//
// They are not the links that all else shares, because of librados 16. There, the
// limit that links have for every call (rados_mon_op_timeout) ends the wait for a
// manager's answer, but not the command: an answer that comes after all is written
// to where the function that waited had its buffers, and the process aborts. So
// these connections have no limit. The caller keeps its deadline, and the command
// goes on until a manager is there.
type managers struct {
	dial        func(rbd.Credentials) (managerConn, error) // blocks for Config.Timeout at most
	idleTimeout time.Duration
	// work counts connections that are being shut down, but for those whose
	// command outlived close.
	work *sync.WaitGroup

	mu      sync.Mutex // guards what follows, and the fields of managerLink that say so
	links   map[string]*managerLink
	closing bool
}

// managerLink is the connection of one user to one cluster's manager.
type managerLink struct {
	key string // in managers.links
	// current is the request that is under way; nil for none. Guarded by
	// managers.mu, as is idle, which runs while there is none.
	current *managerRequest
	idle    *time.Timer
	// conn is nil when there is none; creds are those that it was made with. They
	// belong to the request that is under way, or to managers.mu.
	conn  managerConn
	creds rbd.Credentials
}

// managerRequest is a command that is under way.
type managerRequest struct {
	// ended is closed when the manager has answered, abandoned when the caller has
	// gone without that.
	ended, abandoned chan struct{}
}

// ask has f make one command, on a connection with these credentials, and waits for
// the answer until ctx ends. While a caller waits, others wait for their turn; once
// it gave up they are refused at once, until the manager answers.
func (m *managers) ask(ctx context.Context, creds rbd.Credentials, f func(managerConn) error) error {
	l, request, err := m.begin(ctx, creds)
	if err != nil {
		return err
	}
	_, err = run(ctx, func() (struct{}, error) {
		err := m.command(l, creds, f)
		m.end(l, request, err)
		return struct{}{}, err
	}, nil)
	var gaveUp *interrupted
	if errors.As(err, &gaveUp) {
		close(request.abandoned)
	}
	return err
}

func (m *managers) begin(ctx context.Context, creds rbd.Credentials) (*managerLink, *managerRequest, error) {
	// By user, not by key: a request that is never answered is to block the next
	// one also when the key was renewed meanwhile, or connections would pile up.
	key := creds.User + "@" + creds.MonHost()
	for {
		m.mu.Lock()
		if m.closing {
			m.mu.Unlock()
			return nil, nil, errClosed
		}
		l := m.links[key]
		if l == nil {
			l = &managerLink{key: key}
			m.links[key] = l
		}
		other := l.current
		if other == nil {
			l.current = &managerRequest{ended: make(chan struct{}), abandoned: make(chan struct{})}
			if l.idle != nil {
				l.idle.Stop()
				l.idle = nil
			}
			m.mu.Unlock()
			return l, l.current, nil
		}
		m.mu.Unlock()
		select {
		case <-other.ended:
			continue
		case <-ctx.Done():
			return nil, nil, &interrupted{rbd.ErrTimeout, context.Cause(ctx)}
		case <-other.abandoned:
		}
		select {
		case <-other.ended:
		default:
			return nil, nil, errUnanswered
		}
	}
}

// command runs f on the connection of a link, which is made when there is none.
func (m *managers) command(l *managerLink, creds rbd.Credentials, f func(managerConn) error) error {
	if l.conn != nil && !l.creds.Key.Equal(creds.Key) {
		l.conn.shutdown()
		l.conn = nil
	}
	if l.conn == nil {
		conn, err := m.dial(creds)
		if err != nil {
			return translateConnect(err)
		}
		l.conn, l.creds = conn, creds
	}
	return translate(f(l.conn), rbd.ErrImageNotFound)
}

// end ends a request, whose translated error was err.
func (m *managers) end(l *managerLink, request *managerRequest, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.current = nil
	close(request.ended)
	good := err == nil || errors.Is(err, rbd.ErrImageNotFound) || errors.Is(err, rbd.ErrManagerFailed)
	if !good || m.closing {
		// It keeps the caps that it began with, so that a denial would last.
		m.drop(l)
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(m.idleTimeout, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		// Somebody may have come, and left again, since the timer fired.
		if l.idle == timer {
			m.drop(l)
		}
	})
	l.idle = timer
}

// drop forgets a link without a request and ends its connection, in a goroutine
// that Connector.Close waits for, unless it has begun before. m.mu is held.
func (m *managers) drop(l *managerLink) {
	if m.links[l.key] == l {
		delete(m.links, l.key)
	}
	if l.idle != nil {
		l.idle.Stop()
		l.idle = nil
	}
	conn := l.conn
	l.conn = nil
	if conn == nil {
		return
	}
	if m.closing {
		go conn.shutdown()
		return
	}
	m.work.Go(conn.shutdown)
}

// close ends the connections without a request, and refuses new ones. One that is
// under way may never be answered, and librados does not end a connection under it:
// it is left alone, and the end of the process ends it.
func (m *managers) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.links {
		if l.current == nil {
			m.drop(l)
		}
	}
	m.closing = true
}

// HandOverTrashed implements rbd.Trash. It counts as no call of the link, which its
// errors say nothing about, and does not hold the image's name: what the manager
// does not answer would keep the image from being removed here.
func (p *pool) HandOverTrashed(ctx context.Context, id string) error {
	err := p.handOverTrashed(ctx, id)
	if err != nil {
		err = fmt.Errorf("hand over image %q in the trash of pool %q: %w", id, p.name, err)
	}
	return err
}

func (p *pool) handOverTrashed(ctx context.Context, id string) error {
	if err := checkName(id); err != nil {
		return err
	}
	// The manager takes them apart again.
	if strings.ContainsAny(p.name, "/@") || strings.ContainsAny(id, "/@") {
		return fmt.Errorf("a / or @ in a name is %w", rbd.ErrNotSupported)
	}
	if ctx.Err() != nil {
		return &interrupted{rbd.ErrTimeout, context.Cause(ctx)}
	}
	c := p.connector
	c.mu.Lock()
	closed := p.closed || c.closing
	c.mu.Unlock()
	if closed {
		return errClosed
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout+grace)
	defer cancel()
	start := time.Now()
	err := c.managers.ask(ctx, p.link.creds, func(m managerConn) error { return m.removeTrashed(p.name, id) })
	klog.FromContext(ctx).V(4).Info("Asked the manager", "call", "hand over trashed", "id", id, "pool", p.name,
		"duration", time.Since(start), "err", err)
	return err
}
