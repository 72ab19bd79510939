// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Connector implements rbd.Connector with librados. New makes one.
type Connector struct {
	cfg         Config
	idleTimeout time.Duration
	dial        func(rbd.Credentials) (conn, error) // like dialManager, blocks for Config.Timeout at most
	dialManager func(rbd.Credentials) (managerConn, error)
	log         klog.Logger
	names       nameLocks[imageName]
	// managerTurns has a lock for each user and its monitors.
	managerTurns nameLocks[string]
	// work counts each link until its connection is shut down.
	work sync.WaitGroup

	mu      sync.Mutex // guards what follows, and the fields of links and pools that say so
	links   map[*link]struct{}
	closing bool
	// versions has what Versions returns.
	versions map[string]string
}

var _ rbd.Connector = (*Connector)(nil)

func newConnector(cfg Config, dial func(rbd.Credentials) (conn, error),
	dialManager func(rbd.Credentials) (managerConn, error)) *Connector {
	return &Connector{
		cfg: cfg, idleTimeout: idleTimeout, dial: dial, dialManager: dialManager, log: klog.Background().WithName("ceph"),
		links: map[*link]struct{}{}, versions: map[string]string{},
	}
}

// Connect implements rbd.Connector. Of the connections to the same monitors as the same
// user, it keeps the one whose key worked last: an older one with another key closes as
// soon as its users have left.
func (c *Connector) Connect(ctx context.Context, creds rbd.Credentials) (rbd.Cluster, error) {
	cluster, err := c.connect(ctx, creds)
	if err != nil {
		return nil, fmt.Errorf("connect to monitors %q as user %q: %w", creds.MonHost(), creds.User, err)
	}
	return cluster, nil
}

func (c *Connector) connect(ctx context.Context, creds rbd.Credentials) (*cluster, error) {
	if err := check(creds); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, &interrupted{rbd.ErrUnreachable, context.Cause(ctx)}
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout+grace)
	defer cancel()

	l, err := c.join(creds)
	if err != nil {
		return nil, err
	}
	cl := &cluster{connector: c, link: l}
	select {
	case <-l.dialed:
		return cl, l.err
	case <-ctx.Done():
		cl.Close()
		return nil, &interrupted{rbd.ErrUnreachable, context.Cause(ctx)}
	}
}

// check refuses what librados would complain about on standard error, or answer with its
// own search for monitors or keys.
func check(creds rbd.Credentials) error {
	for _, m := range creds.Monitors {
		if !isAddress(m) {
			return fmt.Errorf("monitor %q is not an IP address with an optional port", m)
		}
	}
	switch {
	case len(creds.Monitors) == 0:
		return errors.New("no monitor is given")
	case creds.User == "":
		return errors.New("no user is given")
	case creds.Key.IsZero():
		return fmt.Errorf("%w: there is none", rbd.ErrInvalidKey)
	}
	return checkText(creds.User)
}

// isAddress reports whether librados can read a monitor's address without asking DNS.
func isAddress(monitor string) bool {
	host, found := strings.CutPrefix(monitor, "v1:")
	if !found {
		host = strings.TrimPrefix(monitor, "v2:")
	}
	_, err := netip.ParseAddrPort(host)
	if err != nil {
		_, err = netip.ParseAddrPort(host + ":0")
	}
	return err == nil
}

// join counts the caller in as a user of a link for creds, and makes one if there is
// none. The caller must wait until the link is dialed.
func (c *Connector) join(creds rbd.Credentials) (*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return nil, errClosed
	}
	for l := range c.links {
		if !l.retired && l.matches(creds) {
			l.use()
			return l, nil
		}
	}
	l := &link{
		creds: creds, dialed: make(chan struct{}), users: 1,
		pools: map[*pool]struct{}{}, abandoned: map[*running]struct{}{},
	}
	c.links[l] = struct{}{}
	c.work.Add(1)
	go c.open(l)
	return l, nil
}

// open dials a link. No caller owns it: some give up, and others join meanwhile.
func (c *Connector) open(l *link) {
	conn, err := c.dial(l.creds)

	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(l.dialed)
	if err != nil {
		l.err = translateConnect(err)
		refused := errors.Is(l.err, rbd.ErrInvalidKey) || errors.Is(l.err, rbd.ErrNotSupported) // before 20, and from then on
		if keyType := l.creds.Key.Type(); refused && keyType != rbd.KeyTypeAES {
			l.err = fmt.Errorf("%w: %s, with librados %s", rbd.ErrKeyType, keyType, Version())
		}
		l.retired = true
		delete(c.links, l)
		c.work.Done()
		return
	}
	l.conn = conn
	c.log.V(2).Info("Opened a connection", "monitors", l.creds.MonHost(), "user", l.creds.User, "fsid", conn.fsid())
	for other := range c.links {
		// A link that is still dialing may hold the newer key.
		if other != l && other.conn != nil && other.sameUser(l.creds) && !other.matches(l.creds) {
			other.retired = true
			c.settle(other)
		}
	}
	c.learnVersion(l)
	c.settle(l)
}

// Close refuses new calls, waits for running ones but not for a manager's answer, and ends
// all connections, even those that still have users. If ctx ends first, Close returns an
// error, and calls run on.
func (c *Connector) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closing = true
	for l := range c.links {
		c.settle(l)
	}
	c.mu.Unlock()

	if err := run(ctx, func() error { c.work.Wait(); return nil }); err != nil {
		return fmt.Errorf("close the connections to Ceph: calls have not ended: %w", context.Cause(ctx))
	}
	return nil
}
