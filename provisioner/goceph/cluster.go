// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"fmt"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

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
			l.users--
		} else {
			p.ioctx = io
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
