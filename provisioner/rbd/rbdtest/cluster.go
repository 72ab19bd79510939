// SPDX-License-Identifier: Apache-2.0

// Package rbdtest holds a Ceph cluster in memory for tests, and the suite that
// holds every rbd.Connector to the contract of package rbd: this one here, and
// that of package goceph on a real cluster.
//
// A Cluster behaves: what one call did, the next one sees. Where it differs
// from a real one, the comments say so. Methods whose names begin with Fake
// make it misbehave in ways that a real one only shows by bad luck.
package rbdtest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// DefaultTimeout bounds the calls to a Cluster whose context has no deadline or
// a later one.
const DefaultTimeout = 30 * time.Second

// Cluster is a Ceph cluster in memory. It is safe for concurrent use.
type Cluster struct {
	fsid     string
	monitors []string
	names    nameLocks

	mu     sync.Mutex // guards what follows
	users  map[string]user
	pools  map[string]*poolState
	down   bool          // no monitor answers
	paused chan struct{} // closed by Resume; nil while the OSDs answer
	epoch  int           // raised by Disconnect
	faults []*FakeFault
	open   int // Clusters and Pools that were not closed
	images int // that were ever made
}

type user struct {
	key  rbd.Key
	caps Caps
}

// Caps say what a user may do.
type Caps struct {
	// Pools are the pools in which the user may do everything.
	Pools []string
	// AllPools stands for every pool, also those made later.
	AllPools bool
	// Manager allows to ask the manager for work.
	Manager bool
}

func (c Caps) allow(pool string) bool {
	return c.AllPools || slices.Contains(c.Pools, pool)
}

type poolState struct {
	name    string
	deleted bool
	full    bool
	// noImages and noData say what an erasure-coded pool can't hold: the one
	// never, the other unless it can be overwritten.
	noImages, noData bool
	images           map[string]*image
	remains          map[string]Remains
	// trash is by ID. hasTrash says that something was ever in it.
	trash    map[string]*trashed
	hasTrash bool
	// notes are those of each object.
	notes map[string]map[string][]byte
}

type image struct {
	id        string
	size      uint64
	dataPool  string
	metadata  map[string]string
	watchers  []string
	snapshots []*snapshot
	// written says that something was written into it, data what.
	written bool
	data    string
	// parent is the image that it is a clone of, and from its snapshot.
	parent *image
	from   *snapshot
	// half says that the snapshot does not know of it.
	half bool
}

// Remains is what a client that died may leave of an image.
type Remains int

const (
	// RemainsID is the object with the image's ID, as an interrupted creation
	// of Ceph 15 leaves it.
	RemainsID Remains = iota
	// RemainsDirectoryOnly is the image's entry in the pool's directory, as
	// an interrupted creation of Ceph 16 leaves it, and removals do.
	RemainsDirectoryOnly
	// RemainsDirectory is both, as a later interruption leaves them.
	RemainsDirectory
	// RemainsUnlisted is a whole image without its entry in the directory:
	// only lists of images miss it.
	RemainsUnlisted
)

func (r Remains) String() string {
	switch r {
	case RemainsID:
		return "the ID alone"
	case RemainsDirectory:
		return "the ID and the directory entry"
	case RemainsDirectoryOnly:
		return "the directory entry alone"
	case RemainsUnlisted:
		return "all but the directory entry"
	}
	return "unknown"
}

// NewCluster returns a cluster without pools and users that answers under the
// given monitors. Addresses are compared without their protocol: "10.0.0.1" and
// "v1:10.0.0.1:6789" are one.
func NewCluster(monitors ...string) *Cluster {
	return &Cluster{
		fsid:     newFSID(),
		monitors: monitors,
		users:    map[string]user{},
		pools:    map[string]*poolState{},
	}
}

func newFSID() string {
	var b [16]byte
	random(b[:])
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// NewKey returns a key that no other user has.
func NewKey() rbd.Key {
	const aes, length = 1, 16
	raw := make([]byte, 12+length)
	binary.LittleEndian.PutUint16(raw, aes)
	binary.LittleEndian.PutUint16(raw[10:], length)
	random(raw[12:])
	key, err := rbd.ParseKey(base64.StdEncoding.EncodeToString(raw))
	if err != nil {
		panic(err) // A key made two lines above is well formed.
	}
	return key
}

// random fills b. It never fails: crypto/rand ends the process first.
func random(b []byte) { _, _ = rand.Read(b) }

// FSID returns the cluster's identity.
func (c *Cluster) FSID() string { return c.fsid }

// Monitors returns the cluster's monitors.
func (c *Cluster) Monitors() []string { return slices.Clone(c.monitors) }

// AddUser makes a user and returns credentials for it. A user that is there
// gets the new caps and a new key: connections that it has open stay good, as
// with a real cluster.
func (c *Cluster) AddUser(name string, caps Caps) rbd.Credentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := NewKey()
	c.users[name] = user{key, caps}
	return rbd.Credentials{Monitors: c.Monitors(), User: name, Key: key}
}

// RemoveUser removes a user. Connections that it has open stay good.
func (c *Cluster) RemoveUser(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.users, name)
}

// AddPool makes an empty pool, unless it is there.
func (c *Cluster) AddPool(name string) { c.addPool(poolState{name: name}) }

// AddErasurePool makes an erasure-coded pool, unless it is there. It can hold
// data of images if it can be overwritten, but no images.
func (c *Cluster) AddErasurePool(name string, overwrites bool) {
	c.addPool(poolState{name: name, noImages: true, noData: !overwrites})
}

func (c *Cluster) addPool(p poolState) {
	p.images, p.remains, p.trash = map[string]*image{}, map[string]Remains{}, map[string]*trashed{}
	p.notes = map[string]map[string][]byte{}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pools[p.name] == nil {
		c.pools[p.name] = &p
	}
}

// RemovePool removes a pool and everything in it.
func (c *Cluster) RemovePool(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mustPool(name).deleted = true
	delete(c.pools, name)
}

// SetFull says whether a pool is full, or over its quota.
func (c *Cluster) SetFull(pool string, full bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mustPool(pool).full = full
}

// SetUnreachable says whether the monitors stay silent. A real client waits for
// them as long as it may; this one is told at once. Connections that are open
// stay good.
func (c *Cluster) SetUnreachable(unreachable bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = unreachable
}

// Disconnect shuts out every client: calls on open connections return
// ErrConnectionLost, new connections are good.
func (c *Cluster) Disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
}

// Pause stops the OSDs: calls on images hang. Those whose caller gave up take
// effect on Resume, and hold the image's name until then.
func (c *Cluster) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused == nil {
		c.paused = make(chan struct{})
	}
}

// Resume lets the OSDs go on.
func (c *Cluster) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused != nil {
		close(c.paused)
		c.paused = nil
	}
}

// Open returns how many Clusters and Pools were given out and not closed.
func (c *Cluster) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

// mustPool returns a pool that the test says is there. c.mu is held.
func (c *Cluster) mustPool(name string) *poolState {
	p := c.pools[name]
	if p == nil {
		panic(fmt.Sprintf("rbdtest: the test has no pool %q", name))
	}
	return p
}
