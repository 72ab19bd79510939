// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// managerConn is a connection for commands to a cluster's manager, and for nothing else.
// Errors carry librados's error number.
//
// It is separate from the shared link because of librados 16. There, the limit that links
// set (rados_mon_op_timeout) ends the wait for a manager's answer, but not the command:
// librados writes a late answer to where the waiting function had its buffers, and the
// process aborts. So these connections have no limit: the caller keeps its deadline, and
// the command blocks until a manager answers.
type managerConn interface {
	// removeTrashed does what rbd.Trash.HandOverTrashed says.
	removeTrashed(pool, id string) error
	// shutdown ends the connection. No command may be running by then: librados forgets
	// it, and its caller would wait for ever.
	shutdown()
}

// HandOverTrashed implements rbd.Trash. It does not count as a call of the link, since
// its errors say nothing about that. Nor does it hold the image's name: a manager that
// does not answer would keep the image from being removed here.
func (p *pool) HandOverTrashed(ctx context.Context, id string) error {
	start := time.Now()
	err := p.handOverTrashed(ctx, id)
	klog.FromContext(ctx).V(4).Info("Asked the manager", "call", "hand over trashed", "id", id, "pool", p.name,
		"duration", time.Since(start), "err", err)
	if err != nil {
		err = fmt.Errorf("hand over image %q in the trash of pool %q: %w", id, p.name, err)
	}
	return err
}

func (p *pool) handOverTrashed(ctx context.Context, id string) error {
	if err := checkName(id); err != nil {
		return err
	}
	// The manager gets both names as one text, and splits it at these characters.
	if strings.ContainsAny(p.name, "/@") || strings.ContainsAny(id, "/@") {
		return fmt.Errorf("a / or @ in a name is %w", rbd.ErrNotSupported)
	}
	ctx, cancel := context.WithTimeout(ctx, p.connector.cfg.Timeout+grace)
	defer cancel()
	// A user may have one command running at a cluster's manager. The turn goes by user,
	// not by key: a command that never gets an answer must stop the next one even after
	// the key was renewed, or connections would pile up.
	unlock, err := p.connector.managerTurns.lock(ctx, p.link.creds.User+"@"+p.link.creds.MonHost())
	if err != nil {
		return err
	}
	return run(ctx, func() error {
		defer unlock()
		conn, err := p.takeManager()
		if err != nil {
			return err
		}
		defer p.giveManager(conn)
		return translate(conn.removeTrashed(p.name, id), rbd.ErrImageNotFound)
	})
}

// takeManager returns the pool's connection for commands, and makes one if there is none.
// The caller has the turn, and gives the connection back.
func (p *pool) takeManager() (managerConn, error) {
	c := p.connector
	c.mu.Lock()
	conn, closed := p.manager, p.closed || c.closing
	if !closed {
		p.manager = nil
	}
	c.mu.Unlock()
	switch {
	case closed:
		return nil, errClosed
	case conn != nil:
		return conn, nil
	}
	conn, err := c.dialManager(p.link.creds)
	return conn, translateConnect(err)
}

// giveManager keeps a connection for the pool's next command, unless the pool is closed.
func (p *pool) giveManager(conn managerConn) {
	p.connector.mu.Lock()
	defer p.connector.mu.Unlock()
	p.manager = conn
	if p.closed || p.connector.closing {
		p.dropManager()
	}
}

// dropManager ends the pool's connection for commands, in a goroutine; giveManager does so
// if a command is running. The caller holds Connector.mu. Connector.Close waits for these
// goroutines, except those that start after the pool's link has ended: no manager answered
// in time.
func (p *pool) dropManager() {
	conn := p.manager
	p.manager = nil
	switch {
	case conn == nil:
	case p.link.down:
		go conn.shutdown()
	default:
		p.connector.work.Go(conn.shutdown)
	}
}
