// SPDX-License-Identifier: Apache-2.0

// Package provisioner makes an image and a PersistentVolume for a claim, and
// removes the image of a released volume: the interfaces of
// sig-storage-lib-external-provisioner. That library decides when; how Ceph is
// reached is package access's, what the objects mean that of storageclass and
// volume.
package provisioner

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	utilcache "k8s.io/apimachinery/pkg/util/cache"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/ownership"
)

// DefaultName is what a StorageClass names as its provisioner. The retired
// rbd-provisioner had the same.
const DefaultName = "ceph.com/rbd"

// imagePrefix begins the names of images; ceph-csi recognises migrated volumes
// by it.
const imagePrefix = "kubernetes-dynamic-pvc-"

// unknownCluster stands for a Kubernetes cluster whose identity may not be read.
// That several share their removals then is harmless: each says which image it is
// about, and when that may go.
const unknownCluster = "unknown"

// Config has what New needs. All are required, where they do not say otherwise.
type Config struct {
	// Name is what a StorageClass names as its provisioner.
	Name string
	// Identity is written on volumes and images; those with another one are
	// left alone.
	Identity string
	// UsePVName names images like their PersistentVolume instead of
	// kubernetes-dynamic-pvc-UID.
	UsePVName bool
	// ClusterUID is the identity of the Kubernetes cluster: others may share the
	// pools, and copies of volumes be restored in them. Empty means not to keep a
	// journal: an image whose creation is cut off, and whose claim is then deleted,
	// is known to nobody; and not to remove an image that belongs to a cluster.
	ClusterUID string

	// Claims and ClaimLister are the server's claims, and the cache's.
	Claims      corev1client.PersistentVolumeClaimsGetter
	ClaimLister corelisters.PersistentVolumeClaimLister
	Classes     storagelisters.StorageClassLister
	Access      *access.Access
	// Events tells people of what does not keep a volume from being made.
	Events record.EventRecorder
	// Volumes and VolumeLister are the server's volumes, and the cache's.
	Volumes      corev1client.PersistentVolumesGetter
	VolumeLister corelisters.PersistentVolumeLister
	// VolumeIndex is the cache itself, which has the indexers of VolumeIndexers.
	VolumeIndex cache.Indexer
	// Recovered is told what recovery did about images that were left; nil for
	// nobody.
	Recovered func(Outcome)
	// Purged is told of each image that was removed from the trash, and by whom:
	// ByManager or ByProvisioner; nil for nobody.
	Purged func(by string)
	// MaxCloneDepth is on how many images a clone may depend, one through the
	// other; one that depends on more is flattened, in the background, before it
	// gets its volume. 0 flattens every clone; at most CloneDepthLimit.
	MaxCloneDepth int
	// Flattened is told of each clone that was flattened; nil for nobody.
	Flattened func()
	// Lease guards what this replica does, and counts its operations: Drain it before
	// the lease is given back. Nil means that there is no lease.
	Lease *lease.Guard
}

// Provisioner implements the library's Provisioner and BlockProvisioner. It is
// safe for concurrent use.
type Provisioner struct {
	config Config

	// forbidden holds the namespaces whose user secrets RBAC keeps from us,
	// so that the log says it once.
	forbidden sync.Map

	// operations counts those of the library that run; ended is when one ended
	// last, nil for never.
	operations atomic.Int64
	ended      atomic.Pointer[time.Time]

	// journal is empty without a ClusterUID; ledger is used only with it.
	journal  journal.Journal
	ledger   journal.Ledger
	images   imageLocks
	removals journal.Removals
	purger   purger

	flattener flattener
	// deleted has the UIDs of volumes whose image was deleted lately, released the
	// versions of volumes that the cache has shown to be released lately.
	deleted, released *utilcache.Expiring
}

var _ controller.BlockProvisioner = (*Provisioner)(nil)

// New returns a Provisioner, or an error that names what c lacks.
func New(c Config) (*Provisioner, error) {
	if c.Name == "" || c.Identity == "" {
		return nil, errors.New("provisioner: Name and Identity are required")
	}
	if c.Claims == nil || c.ClaimLister == nil || c.Classes == nil || c.Access == nil || c.Events == nil || c.Volumes == nil || c.VolumeLister == nil || c.VolumeIndex == nil {
		return nil, errors.New("provisioner: Claims, ClaimLister, Classes, Access, Events, Volumes, VolumeLister and VolumeIndex are required")
	}
	if c.Lease == nil {
		c.Lease = lease.New(nil)
	}
	p := &Provisioner{config: c, deleted: utilcache.NewExpiring(), released: utilcache.NewExpiring()}
	cluster := unknownCluster
	if c.ClusterUID != "" {
		cluster = c.ClusterUID
		p.journal.Object = journal.Object(cluster, c.Name, c.Identity)
	}
	p.removals.Object = journal.RemovalsObject(cluster, c.Name, c.Identity)
	return p, nil
}

// keeper says whose images are ours.
func (p *Provisioner) keeper() ownership.Keeper {
	return ownership.Keeper{Identity: p.config.Identity, Cluster: p.config.ClusterUID}
}

// SupportsBlock says that volumes may be of mode Block.
func (p *Provisioner) SupportsBlock(context.Context) bool { return true }

// Trash returns how many images of deleted volumes are in the trash: those that
// are to be removed, and those that are kept for a while.
func (p *Provisioner) Trash() (waiting, kept int) { return p.purger.counts(time.Now()) }

// begin counts an operation in and returns what counts it out again, as the lease's
// guard does. Once that is drained, the error is an IgnoredError, which the library
// passes over in silence.
func (p *Provisioner) begin(ctx context.Context) (context.Context, func(), error) {
	ctx, end, err := p.config.Lease.Begin(ctx)
	if errors.Is(err, lease.ErrStopping) {
		return ctx, nil, &controller.IgnoredError{Reason: err.Error()}
	}
	if err != nil {
		return ctx, nil, err
	}
	p.operations.Add(1)
	return ctx, func() {
		p.ended.Store(ptr.To(time.Now()))
		p.operations.Add(-1)
		end()
	}, nil
}
