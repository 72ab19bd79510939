// SPDX-License-Identifier: Apache-2.0

// Package provisioner makes an image and a PersistentVolume for a claim, and removes
// the image of a released volume. It implements the interfaces of
// sig-storage-lib-external-provisioner, which decides when. A claim's way is
// provision.go, a volume's way delete.go; both read from top to bottom.
package provisioner

import (
	"context"
	"errors"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

// DefaultName is the name by which a StorageClass asks for this provisioner. The
// retired rbd-provisioner had the same.
const DefaultName = "ceph.com/rbd"

// Trash removes images in their pool's trash in the background.
type Trash interface {
	// Move notes the deletion of an image, moves the image there, and has it removed. Errors:
	// those of SetNotes and TrashImage.
	Move(ctx context.Context, pool *access.Pool, removal journal.Removal) error
}

// Flattener flattens clones in the background.
type Flattener interface {
	// Request has a clone flattened, unless that is in progress. The error is never
	// nil: it says that the clone is being flattened, or why the last attempt failed.
	// The location opens its pool; parent is the ID of the image that it is a clone of.
	Request(clone volume.ImageID, location volume.Location, parent string) error
}

// Config has what New needs: all fields but UsePVName, ClusterUID and MaxCloneDepth.
type Config struct {
	// Name is the provisioner that a StorageClass names.
	Name string
	// Identity is written on volumes and images; those of another one are left alone.
	Identity string
	// UsePVName names images like their PersistentVolume, not kubernetes-dynamic-pvc-UID.
	UsePVName bool
	// ClusterUID is the identity of the Kubernetes cluster: others may share the pools, and
	// restore copies of volumes. Without it, no image that belongs to a cluster is removed.
	ClusterUID string

	// Claims asks the API server, ClaimLister the cache.
	Claims      corev1client.PersistentVolumeClaimsGetter
	ClaimLister corelisters.PersistentVolumeClaimLister
	// Volumes asks the API server, VolumeLister the cache. VolumeIndex is the cache itself.
	Volumes      corev1client.PersistentVolumesGetter
	VolumeLister corelisters.PersistentVolumeLister
	VolumeIndex  index.Volumes
	Classes      storagelisters.StorageClassLister
	Access       *access.Access
	Journal      *journal.Journal
	Trash        Trash
	Flattener    Flattener
	// Nodes decides on the source of volumes whose class does not.
	Nodes Nodes
	// Events reports problems that do not keep a volume from being made.
	Events record.EventRecorder
	// Sized is called with the size of each volume that a claim gets.
	Sized func(claim runtime.Object, sizeBytes int64)
	// MaxCloneDepth is the most images that a clone may depend on, one through the other,
	// at most image.CloneDepthLimit. With more, it is flattened before it gets its volume.
	MaxCloneDepth int
	// Lease guards and counts operations: Drain it before giving the lease back.
	Lease *lease.Guard
	// Activity counts the operations, for other work to give way to.
	Activity *lease.Activity
}

// Provisioner implements the library's Provisioner, BlockProvisioner and Qualifier.
// It is safe for concurrent use.
type Provisioner struct {
	config Config
	// forbidden holds the namespaces whose user secrets RBAC keeps from us, to log it once.
	forbidden sync.Map
	// deleted holds the UIDs of volumes whose image was deleted lately.
	deleted *utilcache.Expiring
	fresh   *index.Freshness
	byHand  *work.Queue[string] // of volumes' names
}

var _ controller.BlockProvisioner = (*Provisioner)(nil)

// New returns a Provisioner, or an error if a field is missing.
func New(c Config) (*Provisioner, error) {
	if c.Name == "" || c.Identity == "" || c.Claims == nil || c.ClaimLister == nil || c.Volumes == nil ||
		c.VolumeLister == nil || c.VolumeIndex.Cache == nil || c.Classes == nil || c.Access == nil || c.Journal == nil ||
		c.Trash == nil || c.Flattener == nil || c.Nodes == nil || c.Events == nil || c.Sized == nil || c.Lease == nil || c.Activity == nil {
		return nil, errors.New("provisioner: all fields but UsePVName, ClusterUID and MaxCloneDepth are required")
	}
	return &Provisioner{config: c, deleted: utilcache.NewExpiring(), fresh: index.NewFreshness(c.VolumeIndex, c.Volumes),
		byHand: work.NewQueue[string]()}, nil
}

// Seen notes that the cache shows a volume: its image is no longer in flight, and the
// cache knows the volumes that existed before this one was released. RunByHand gets those
// that are stuck. Call it for what the cache adds (before is nil), updates or looks at again.
func (p *Provisioner) Seen(before, pv *corev1.PersistentVolume) {
	p.fresh.Seen(before, pv)
	if p.isStuck(pv) {
		p.byHand.Add(pv.Name)
	}
	if !p.Owns(pv) {
		return
	}
	if record, err := volume.Read(pv); err == nil { // otherwise another program made it
		p.config.Journal.InFlight.Saved(pv.Name, record.PoolID().Image(record.Image))
	}
}

// SupportsBlock says that volumes may have the mode Block.
func (p *Provisioner) SupportsBlock(context.Context) bool { return true }

// begin counts an operation in and returns the function that counts it out again, like
// the lease guard. Once that is drained, the error is an IgnoredError, which the
// library passes over in silence.
func (p *Provisioner) begin(ctx context.Context) (context.Context, func(), error) {
	ctx, end, err := p.config.Lease.Begin(ctx)
	if errors.Is(err, lease.ErrStopping) {
		return ctx, nil, &controller.IgnoredError{Reason: err.Error()}
	}
	if err != nil {
		return ctx, nil, err
	}
	over := p.config.Activity.Begin()
	return ctx, func() { over(); end() }, nil
}
