// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Connector connects to several clusters. It makes a connection for each Connect and shares
// none, which callers can't notice.
type Connector struct {
	clusters []*Cluster
}

var (
	_ rbd.Connector = (*Connector)(nil)
	_ rbd.Connector = (*Cluster)(nil)
)

// NewConnector returns a Connector to the given clusters. All other monitors do not answer.
func NewConnector(clusters ...*Cluster) *Connector { return &Connector{clusters} }

// Connect implements rbd.Connector.
func (c *Connector) Connect(ctx context.Context, creds rbd.Credentials) (rbd.Cluster, error) {
	for _, m := range creds.Monitors {
		for _, cluster := range c.clusters {
			if cluster.answers(m) {
				return cluster.Connect(ctx, creds)
			}
		}
	}
	return (&Cluster{}).Connect(ctx, creds)
}

// Connect implements rbd.Connector, for code that needs a single cluster.
func (c *Cluster) Connect(ctx context.Context, creds rbd.Credentials) (rbd.Cluster, error) {
	s, err := c.connect(ctx, creds)
	if err != nil {
		return nil, fmt.Errorf("connect to monitors %q as user %q: %w", creds.MonHost(), creds.User, err)
	}
	return &share{session: s}, nil
}

func (c *Cluster) connect(ctx context.Context, creds rbd.Credentials) (*session, error) {
	if creds.Key.IsZero() {
		return nil, fmt.Errorf("%w: there is none", rbd.ErrInvalidKey)
	}
	if keyType := creds.Key.Type(); strings.HasPrefix(keyType, "number ") { // as the newest librados
		return nil, fmt.Errorf("%w: %s", rbd.ErrKeyType, keyType)
	}
	fault := c.fault(CallConnect, "")
	fault.before()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, interrupted(ctx, rbd.ErrUnreachable)
	case fault.Err != nil:
		return nil, fault.Err
	case c.down || !slices.ContainsFunc(creds.Monitors, c.answers):
		return nil, rbd.ErrUnreachable
	}
	u, found := c.users[creds.User]
	if !found || !u.key.Equal(creds.Key) || u.caps.NoMonitor {
		return nil, rbd.ErrPermissionDenied
	}
	c.open++
	return &session{cluster: c, caps: u.caps, epoch: c.epoch}, nil
}

// answers reports whether the cluster has that monitor.
func (c *Cluster) answers(monitor string) bool {
	return slices.ContainsFunc(c.monitors, func(own string) bool { return address(own) == address(monitor) })
}

// address returns a monitor's address with its port and without its protocol.
func address(monitor string) string {
	port := "6789"
	rest, v2 := strings.CutPrefix(monitor, "v2:")
	if v2 {
		port = "3300"
	}
	rest = strings.TrimPrefix(rest, "v1:")
	if _, err := netip.ParseAddrPort(rest); err == nil {
		return rest
	}
	return rest + ":" + port
}

// session is a connection.
type session struct {
	cluster *Cluster
	caps    Caps // of the time when the connection was made
	epoch   int
}

// check returns why the connection does not work any more. The caller holds Cluster.mu.
func (s *session) check() error {
	if s.epoch != s.cluster.epoch {
		return rbd.ErrConnectionLost
	}
	return nil
}

// share is the rbd.Cluster that a caller holds.
type share struct {
	session *session
	closed  bool // guarded by Cluster.mu
}

// FSID implements rbd.Cluster.
func (s *share) FSID() string { return s.session.cluster.fsid }

// Version implements rbd.Cluster.
func (s *share) Version(ctx context.Context) (string, error) {
	if err := s.ask(ctx); err != nil {
		return "", fmt.Errorf("ask for the version of Ceph: %w", err)
	}
	return "20.2.4", nil
}

func (s *share) ask(ctx context.Context) error {
	s.session.cluster.mu.Lock()
	defer s.session.cluster.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return interrupted(ctx, rbd.ErrTimeout)
	case s.closed:
		return errClosed
	case s.session.caps.DeafMonitor:
		return rbd.ErrPermissionDenied
	}
	return nil
}

// OpenPool implements rbd.Cluster.
func (s *share) OpenPool(ctx context.Context, name string) (rbd.Pool, error) {
	p, err := s.openPool(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("open pool %q: %w", name, err)
	}
	return p, nil
}

func (s *share) openPool(ctx context.Context, name string) (*pool, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	c := s.session.cluster
	fault := c.fault(CallOpenPool, "")
	fault.before()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, interrupted(ctx, rbd.ErrTimeout)
	case s.closed:
		return nil, errClosed
	case fault.Err != nil:
		return nil, fault.Err
	}
	if err := s.session.check(); err != nil {
		return nil, err
	}
	if s.session.caps.DeafMonitor {
		return nil, rbd.ErrTimeout
	}
	state := c.pools[name]
	if state == nil {
		return nil, rbd.ErrPoolNotFound
	}
	if s.session.caps.NoOSD {
		return nil, rbd.ErrNoOSD
	}
	c.open++
	return &pool{session: s.session, state: state}, nil
}

// Close implements rbd.Cluster.
func (s *share) Close() { s.session.cluster.close(&s.closed) }

func (c *Cluster) close(closed *bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !*closed {
		*closed = true
		c.open--
	}
}
