// SPDX-License-Identifier: Apache-2.0

// Package access opens pools: it reads the key from its Secret at the moment of use,
// resolves the monitors' names and connects. It keeps a cluster that does not answer from
// holding all the workers. Sharing connections is the Connector's work.
package access

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sync/singleflight"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/monitors"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Config has what New needs. Secrets and Connector are required.
type Config struct {
	Secrets   corev1client.SecretsGetter
	Connector rbd.Connector
	// Resolver resolves the monitors' names; nil means net.DefaultResolver.
	Resolver monitors.Resolver
	// Workers is how many pools callers open at a time for claims, and likewise for
	// volumes. Of several clusters, a slow one gets half of them. Zero means no limit.
	Workers int
	// Lease must be held for each call that changes something; otherwise the call returns
	// lease.ErrNotLeading. Nil means that there is no lease.
	Lease *lease.Guard
	// Observe gets each call to a pool: the name of its rbd.Op, how long it took and its
	// error. Many goroutines call it. Nil means that no one observes.
	Observe func(op string, d time.Duration, err error)
}

// DefaultTimeout bounds each call that is not to Ceph.
const DefaultTimeout = 10 * time.Second

// Access opens pools. It is safe for concurrent use.
type Access struct {
	config Config
	gate   *gate
	// reading has the Secrets that are being read.
	reading singleflight.Group
	recent  *utilcache.Expiring // secretRead by volume.SecretRef
}

// New returns an Access, or an error that names what c lacks.
func New(c Config) (*Access, error) {
	if c.Secrets == nil || c.Connector == nil {
		return nil, errors.New("access: Secrets and Connector are required")
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Lease == nil {
		c.Lease = lease.New(nil)
	}
	if c.Observe == nil {
		c.Observe = func(string, time.Duration, error) {}
	}
	return &Access{config: c, gate: newGate(c.Workers), recent: utilcache.NewExpiring()}, nil
}

// Open opens the pool of a location for work on a claim. The caller must Close the Pool,
// and end its calls before that. Calls that change something need the lease. The errors
// are those of ReadKey, Resolve, Connector.Connect and Cluster.OpenPool, with the remedy
// added; whatever the error, nothing in Ceph was changed.
//
// If calls to this location recently got no answer, Open fails like them at once while
// another operation tries. While one cluster of several is slow, or a user has opened no
// pool yet, it may return ErrBusy.
func (a *Access) Open(ctx context.Context, l volume.Location) (*Pool, error) {
	return a.open(ctx, l, forClaim)
}

// OpenForVolume is Open for work on an existing volume. Most callers have Volumes call it.
func (a *Access) OpenForVolume(ctx context.Context, l volume.Location) (*Pool, error) {
	return a.open(ctx, l, forVolume)
}

func (a *Access) open(ctx context.Context, l volume.Location, u use) (_ *Pool, err error) {
	v, err := a.gate.enter(ctx, l, u)
	if err != nil {
		return nil, Explain(err, l)
	}
	defer func() {
		if err != nil {
			v.leave()
		}
	}()
	key, err := a.ReadKey(ctx, l.Secret)
	if err != nil {
		return nil, err
	}
	addresses, err := a.resolve(ctx, l.Monitors)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	cluster, err := a.config.Connector.Connect(ctx, rbd.Credentials{Monitors: addresses.All, User: l.User, Key: key})
	if err != nil && !errors.Is(err, rbd.ErrKeyType) { // with such a key, no monitor is asked
		v.ends(rbd.Op{}, began, err)
	}
	if badKey(err) {
		// The key may have been replaced a moment ago: the next attempt reads it anew.
		a.recent.Delete(l.Secret)
	}
	switch {
	case errors.Is(err, rbd.ErrKeyType):
		return nil, fmt.Errorf("%w: %s", err, makeAESKey(l.Secret, KeyEntry, l.User, key.Type()))
	case badKey(err):
		// Ceph has not looked at the pool's caps yet. Its answer is the same for an unknown
		// user, a wrong key and a user without caps for monitors.
		return nil, fmt.Errorf("%w: check that the user exists, that secret %q holds its key, and that its caps have mon 'profile rbd'", err, l.Secret)
	case err != nil:
		return nil, Explain(err, l)
	}
	// The pool holds its own share.
	defer cluster.Close()
	began = time.Now()
	pool, err := cluster.OpenPool(ctx, l.Pool)
	if err != nil {
		v.ends(rbd.Op{}, began, err)
		return nil, Explain(err, l)
	}
	// Success need not be an answer now: an open connection is shared, and knows its pools.
	v.opened()
	p := &Pool{ID: volume.PoolID{FSID: cluster.FSID(), Pool: l.Pool}, Location: l, Monitors: addresses, visit: v}
	p.Pool = rbd.Around(pool, a.around(p))
	return p, nil
}

func (a *Access) resolve(ctx context.Context, list []volume.Monitor) (monitors.Addresses, error) {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	return monitors.Resolve(ctx, a.config.Resolver, list)
}

// badKey reports whether Ceph or its library refused a key.
func badKey(err error) bool {
	return errors.Is(err, rbd.ErrPermissionDenied) || errors.Is(err, rbd.ErrInvalidKey) || errors.Is(err, rbd.ErrKeyType)
}

// Explain adds a remedy to the error of a call to Ceph, which becomes an event on a claim
// or a volume. The text is the same at each retry.
func Explain(err error, l volume.Location) error {
	var remedy string
	caps := "profile rbd pool=" + l.Pool
	if l.DataPool != "" {
		caps += ", profile rbd pool=" + l.DataPool
	}
	caps = fmt.Sprintf("client.%s, with the key in secret %q, needs at least mon 'profile rbd', osd '%s'", l.User, l.Secret, caps)
	switch {
	case errors.Is(err, rbd.ErrUnreachable):
		// With a wrong key, librados keeps waiting for the silent monitor. Those of Ceph 20
		// hang up before their refusal is read.
		remedy = "check the monitors' addresses in the StorageClass, that Ceph is up and, if it is, the key"
	case errors.Is(err, rbd.ErrNoOSD):
		remedy = "check the health of the Ceph cluster; if that is well, the caps for OSDs may be missing: " + caps
	case errors.Is(err, rbd.ErrTimeout):
		// Ceph is silent towards a user whose caps for monitors do not allow reading.
		remedy = fmt.Sprintf("check the health of the Ceph cluster and, if that is well, the caps of client.%s", l.User)
	case errors.Is(err, rbd.ErrConnectionLost):
		remedy = "check the health of the Ceph cluster"
	case errors.Is(err, rbd.ErrPermissionDenied):
		remedy = caps
	case errors.Is(err, rbd.ErrPoolNotFound):
		remedy = "create the pool, or correct its name"
	case errors.Is(err, rbd.ErrPoolFull):
		remedy = "free space, add storage, or raise the quota"
	case errors.Is(err, rbd.ErrErasureCoded):
		remedy = fmt.Sprintf("name a replicated pool as pool in the class, and %s as dataPool", l.Pool)
	case errors.Is(err, rbd.ErrNotSupported) && l.DataPool != "":
		remedy = fmt.Sprintf("an erasure-coded data pool needs ceph osd pool set %s allow_ec_overwrites true", l.DataPool)
	case errors.Is(err, ErrBusy):
		remedy = "will retry; if this does not end, check the health of the Ceph cluster"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, remedy)
}
