// SPDX-License-Identifier: Apache-2.0

// Package rbdtest has a Ceph cluster in memory for tests, and the conformance suite that
// holds every rbd.Connector to the contract of package rbd: the one in memory, and that of
// package goceph on a real cluster.
//
// A Cluster behaves like a real one: each call sees what earlier calls did. Comments say
// where it differs. Methods whose names begin with Fake make it fail in ways that a real
// cluster shows only by bad luck.
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

// DefaultTimeout bounds each call to a Cluster, beside the call's context.
const DefaultTimeout = 30 * time.Second

// Cluster is a Ceph cluster in memory. It is safe for concurrent use.
type Cluster struct {
	fsid     string
	monitors []string
	names    nameLocks

	mu     sync.Mutex // guards the fields below
	users  map[string]user
	pools  map[string]*poolState
	down   bool          // whether no monitor answers
	paused chan struct{} // closed by Resume; nil while the OSDs answer
	epoch  int           // raised by Disconnect
	faults []*FakeFault
	show   func(*rbd.Image) // changes what Image says
	open   int              // number of Clusters and Pools that were not closed
	images int              // number of images ever made
}

type user struct {
	key  rbd.Key
	caps Caps
}

// Caps say what a user may do.
type Caps struct {
	// Pools are the pools in which the user has all rights.
	Pools []string
	// AllPools stands for every pool, including those made later.
	AllPools bool
	// Manager lets the user ask the manager for work.
	Manager bool
	// NoMonitor is for a user without caps for monitors, who can't connect, DeafMonitor for
	// one whose caps there do not allow reading, and who gets no answer about pools.
	NoMonitor, DeafMonitor bool
	// NoOSD is for a user without any caps for OSDs of Ceph 18 or newer, which do not answer.
	// A real client would wait for them until its deadline; this one fails at once.
	NoOSD bool
}

func (c Caps) allow(pool string) bool {
	return c.AllPools || slices.Contains(c.Pools, pool)
}

type poolState struct {
	name    string
	deleted bool
	full    bool
	// noImages and noData are for erasure-coded pools: these hold no images, and no data of
	// images unless they can be overwritten.
	noImages, noData bool
	images           map[string]*image
	remains          map[string]Remains
	// trash has images by their IDs.
	trash map[string]*trashed
	// notes has the notes of each object.
	notes map[string]map[string][]byte
}

type image struct {
	id        string
	size      uint64
	dataPool  string
	metadata  map[string]string
	watchers  []string
	snapshots []*snapshot
	// held are the commands that end what holds the image.
	held []string
	// written means that something was written into the image; data says what.
	written bool
	data    string
	// parent is the image that this one is a clone of, from the parent's snapshot.
	parent *image
	from   *snapshot
	// half means that the snapshot does not know the clone.
	half bool
}

// Remains says what is left of an image after a client died.
type Remains int

const (
	// RemainsID is the object with the image's ID, which an interrupted creation of Ceph 15
	// leaves.
	RemainsID Remains = iota
	// RemainsDirectoryOnly is the image's entry in the pool's directory, which an
	// interrupted creation of Ceph 16 leaves, or an interrupted removal.
	RemainsDirectoryOnly
	// RemainsDirectory is both, which a later interruption leaves.
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

// NewCluster returns a cluster without pools and users that answers at the given monitors.
// It ignores the protocol of an address: "10.0.0.1" and "v1:10.0.0.1:6789" are the same.
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

// NewKey returns a key of type aes that no other user has.
func NewKey() rbd.Key { return NewKeyOfType(1, 16) }

// NewAES256KKey returns a key of type aes256k that no other user has.
func NewAES256KKey() rbd.Key { return NewKeyOfType(2, 32) }

// NewKeyOfType returns a key that no other user has. The number is that of the type, and
// the length that of the key's secret, which must fit a known type.
func NewKeyOfType(number, length uint16) rbd.Key {
	raw := make([]byte, 12+length)
	binary.LittleEndian.PutUint16(raw, number)
	binary.LittleEndian.PutUint16(raw[10:], length)
	random(raw[12:])
	key, err := rbd.ParseKey(base64.StdEncoding.EncodeToString(raw))
	if err != nil {
		panic(err) // The caller's mistake: the length is not that of the type.
	}
	return key
}

// random fills b. It never fails: crypto/rand ends the process first.
func random(b []byte) { _, _ = rand.Read(b) }

// FSID returns the cluster's identity.
func (c *Cluster) FSID() string { return c.fsid }

// Monitors returns the cluster's monitors.
func (c *Cluster) Monitors() []string { return slices.Clone(c.monitors) }

// AddUser makes a user and returns its credentials. An existing user gets the new caps and
// a new key; its open connections go on working, as on a real cluster.
func (c *Cluster) AddUser(name string, caps Caps) rbd.Credentials {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := NewKey()
	c.users[name] = user{key, caps}
	return rbd.Credentials{Monitors: c.Monitors(), User: name, Key: key}
}

// RemoveUser removes a user. The user's open connections go on working.
func (c *Cluster) RemoveUser(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.users, name)
}

// AddPool makes an empty pool, unless it exists.
func (c *Cluster) AddPool(name string) { c.addPool(poolState{name: name}) }

// AddErasurePool makes an erasure-coded pool, unless it exists. It holds no images; it can
// hold data of images if it can be overwritten.
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

// SetFull sets whether a pool is full, or over its quota.
func (c *Cluster) SetFull(pool string, full bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mustPool(pool).full = full
}

// SetUnreachable sets whether the monitors are silent. A real client would wait for them
// until its deadline; this one fails at once. Open connections go on working.
func (c *Cluster) SetUnreachable(unreachable bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = unreachable
}

// Disconnect shuts out every client: calls on open connections return ErrConnectionLost,
// while new connections work.
func (c *Cluster) Disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
}

// Pause stops the OSDs: calls about images hang. A call whose caller gave up takes effect
// on Resume, and holds the image's name until then.
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

// Open returns how many Clusters and Pools are open.
func (c *Cluster) Open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open
}

// mustPool returns a pool, and panics if there is none. The caller holds c.mu.
func (c *Cluster) mustPool(name string) *poolState {
	p := c.pools[name]
	if p == nil {
		panic(fmt.Sprintf("rbdtest: the test has no pool %q", name))
	}
	return p
}
