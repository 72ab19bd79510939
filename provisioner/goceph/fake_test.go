// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// fakeCeph replaces librados and librbd: it counts what is open, and checks that nothing is
// used after it was closed.
type fakeCeph struct {
	t *testing.T

	mu    sync.Mutex // guards the fields below
	dials int
	// connections and pools count those that are open.
	connections, pools int
	// running has the images that a call is working on.
	running []string

	// Called without mu, if they are not nil.
	onDial func(rbd.Credentials) error
	onCall func(image string) error
	// onManager is called for each command to a manager.
	onManager func(id string) error
	// onVersion is called for each question for the version; nil stands for fakeVersion.
	onVersion func() (string, error)
}

const (
	fakeVersion = "20.2.4"
	fakeFSID    = "11111111-2222-3333-4444-555555555555"
)

func (f *fakeCeph) connector(cfg Config) *Connector {
	cfg, err := cfg.withDefaults()
	if err != nil {
		f.t.Fatal(err)
	}
	return newConnector(cfg, f.dial, f.dialManager)
}

func (f *fakeCeph) dial(creds rbd.Credentials) (conn, error) {
	f.mu.Lock()
	f.dials++
	f.mu.Unlock()
	if f.onDial != nil {
		if err := f.onDial(creds); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.connections++
	return &fakeConn{fakeCeph: f}, nil
}

func (f *fakeCeph) dialManager(creds rbd.Credentials) (managerConn, error) {
	c, err := f.dial(creds)
	if err != nil {
		return nil, err
	}
	return &fakeManager{fakeConn: c.(*fakeConn)}, nil
}

// fakeManager is a connection to a manager.
type fakeManager struct {
	*fakeConn
	asked bool // a command is running
}

func (m *fakeManager) removeTrashed(_, id string) error {
	m.use(true)
	defer m.use(false)
	if m.onManager != nil {
		return m.onManager(id)
	}
	return nil
}

func (m *fakeManager) use(asked bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asked == asked || m.down {
		m.t.Error("two commands at once, or after the connection was shut down")
	}
	m.asked = asked
}

// counts returns how many connections were dialed so far, and what is open now.
func (f *fakeCeph) counts() (dials, connections, pools int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dials, f.connections, f.pools
}

func (f *fakeCeph) want(dials, connections, pools int) {
	f.t.Helper()
	if d, c, p := f.counts(); d != dials || c != connections || p != pools {
		f.t.Errorf("dialed %d times, with %d connections and %d pools open; want %d, %d, %d", d, c, p, dials, connections, pools)
	}
}

type fakeConn struct {
	*fakeCeph
	down    bool
	waiting int // open pools of this connection
	// noteCalls counts the calls about notes.
	noteCalls int
}

func (c *fakeConn) fsid() string { return fakeFSID }

func (c *fakeConn) version() (string, error) {
	if c.onVersion != nil {
		return c.onVersion()
	}
	return fakeVersion, nil
}

func (c *fakeConn) shutdown() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down || c.waiting > 0 {
		c.t.Errorf("shut down twice, or with %d pools open", c.waiting)
	}
	c.down = true
	c.connections--
}

func (c *fakeConn) openPool(name string) (ioctx, error) {
	if c.onCall != nil {
		if err := c.onCall("pool " + name); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		c.t.Error("used after it was shut down")
	}
	c.pools++
	c.waiting++
	return &fakePool{conn: c, name: name}, nil
}

type fakePool struct {
	conn   *fakeConn
	name   string
	closed bool
	calls  int
}

// id depends on the length of the name, which is enough for tests.
func (p *fakePool) id() int64 {
	p.conn.mu.Lock()
	defer p.conn.mu.Unlock()
	if p.closed {
		p.conn.t.Error("asked for its ID after it was closed")
	}
	return int64(len(p.name))
}

func (p *fakePool) close() {
	p.conn.mu.Lock()
	defer p.conn.mu.Unlock()
	if p.closed || p.calls > 0 || p.conn.down {
		p.conn.t.Errorf("closed twice, or with %d calls running, or after the connection", p.calls)
	}
	p.closed = true
	p.conn.pools--
	p.conn.waiting--
}

func (p *fakePool) call(image string) error {
	c := p.conn
	c.mu.Lock()
	if p.closed {
		c.t.Error("used after it was closed")
	}
	if slices.Contains(c.running, image) {
		c.t.Errorf("two calls at once about image %q", image)
	}
	c.running = append(c.running, image)
	p.calls++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		p.calls--
		c.running = slices.DeleteFunc(c.running, func(s string) bool { return s == image })
	}()
	if c.onCall != nil {
		return c.onCall(image)
	}
	return nil
}

func (p *fakePool) CreateImage(_ context.Context, name string, _ rbd.ImageSpec) error {
	return p.call(name)
}

func (p *fakePool) Image(_ context.Context, name string) (rbd.Image, error) {
	return rbd.Image{}, p.call(name)
}

func (p *fakePool) SetMetadata(_ context.Context, name string, _ map[string]string) error {
	return p.call(name)
}

func (p *fakePool) GrowImage(_ context.Context, name string, _ uint64) error { return p.call(name) }

func (p *fakePool) RemoveImage(_ context.Context, name string) error { return p.call(name) }

func (p *fakePool) Written(_ context.Context, name string) (bool, error) { return false, p.call(name) }

func (p *fakePool) FinishRemovals(_ context.Context, _ ...string) error {
	return p.callNotes(trashObject)
}

func (p *fakePool) TrashImage(_ context.Context, name string, _ time.Duration) error {
	return p.call(name)
}

func (p *fakePool) Trashed(_ context.Context, id string) (rbd.Trashed, error) {
	return rbd.Trashed{}, p.call(id)
}

func (p *fakePool) RemoveTrashed(_ context.Context, id string) error { return p.call(id) }

func (p *fakePool) ShrinkTrashed(_ context.Context, id string, _ uint64) (uint64, error) {
	return 0, p.call(id)
}

func (p *fakePool) SnapshotImage(_ context.Context, id, _ string) error { return p.call(id) }

func (p *fakePool) HasClone(_ context.Context, id, _, _ string) (bool, error) {
	return false, p.call(id)
}

func (p *fakePool) CloneImage(_ context.Context, name string, _ rbd.CloneSpec) error {
	return p.call(name)
}

func (p *fakePool) RemoveSnapshot(_ context.Context, id, _ string) error { return p.call(id) }

func (p *fakePool) Snapshots(_ context.Context, id string) ([]string, error) { return nil, p.call(id) }

func (p *fakePool) CloneDepth(_ context.Context, name string) (int, error) { return 0, p.call(name) }

func (p *fakePool) FlattenImage(_ context.Context, name string) error { return p.call(name) }

func (p *fakePool) Notes(_ context.Context, object string, _ ...string) (map[string][]byte, error) {
	return map[string][]byte{}, p.callNotes(object)
}

func (p *fakePool) SetNotes(_ context.Context, object string, _ map[string][]byte) error {
	return p.callNotes(object)
}

func (p *fakePool) RemoveNotes(_ context.Context, object string, _ ...string) error {
	return p.callNotes(object)
}

// callNotes is call for calls that lock no name.
func (p *fakePool) callNotes(object string) error {
	p.conn.mu.Lock()
	p.conn.noteCalls++
	unique := fmt.Sprintf("notes %s %d", object, p.conn.noteCalls)
	p.conn.mu.Unlock()
	return p.call(unique)
}

// fakeCreds returns credentials with a new key.
func fakeCreds() rbd.Credentials {
	return rbd.Credentials{Monitors: []string{"10.0.0.1"}, User: "kube", Key: rbdtest.NewKey()}
}

// openImages returns a connection, and an open pool on it.
func openImages(t testing.TB, c *Connector, creds rbd.Credentials) (rbd.Cluster, rbd.Pool) {
	t.Helper()
	cluster, err := c.Connect(t.Context(), creds)
	if err != nil {
		t.Fatal(err)
	}
	p, err := cluster.OpenPool(t.Context(), "images")
	if err != nil {
		t.Fatal(err)
	}
	return cluster, p
}

// finish closes a Connector and checks that nothing stays open.
func (f *fakeCeph) finish(c *Connector) {
	f.t.Helper()
	if err := c.Close(f.t.Context()); err != nil {
		f.t.Error(err)
	}
	if _, connections, pools := f.counts(); connections != 0 || pools != 0 {
		f.t.Errorf("%d connections and %d pools are left", connections, pools)
	}
}

const second = time.Second
