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
	"ceph.com/rbd-provisioner/provisioner/ownership"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// DefaultName is the name by which a StorageClass asks for this provisioner. The
// retired rbd-provisioner had the same.
const DefaultName = "ceph.com/rbd"

// Trash removes, in the background, images of deleted volumes that were moved to their
// pool's trash.
type Trash interface {
	// Add takes one image. The location is how its pool was opened.
	Add(pool volume.PoolID, location volume.Location, removal journal.Removal)
}

// Flattener flattens clones in the background.
type Flattener interface {
	// Request has a clone flattened, unless that is in progress. The error is never
	// nil: it says that the clone is being flattened, or why the last attempt failed.
	// The location is how the clone's pool was opened, parent the ID of the image that
	// the clone depends on.
	Request(clone volume.ImageID, location volume.Location, parent string) error
}

// Config has what New needs. All fields are required unless they say otherwise.
type Config struct {
	// Name is the provisioner that a StorageClass names.
	Name string
	// Identity is written on volumes and images; the provisioner leaves those of
	// another identity alone.
	Identity string
	// UsePVName names images like their PersistentVolume instead of
	// kubernetes-dynamic-pvc-UID.
	UsePVName bool
	// ClusterUID is the identity of the Kubernetes cluster: other clusters may share
	// the pools, and restore copies of volumes. If it is empty, no image that belongs
	// to a cluster is removed.
	ClusterUID string

	// Claims asks the API server, ClaimLister the cache.
	Claims      corev1client.PersistentVolumeClaimsGetter
	ClaimLister corelisters.PersistentVolumeClaimLister
	// Volumes asks the API server, VolumeLister the cache. VolumeIndex is the cache
	// itself.
	Volumes      corev1client.PersistentVolumesGetter
	VolumeLister corelisters.PersistentVolumeLister
	VolumeIndex  index.Volumes
	Classes      storagelisters.StorageClassLister
	Access       *access.Access
	Journal      *journal.Journal
	Trash        Trash
	Flattener    Flattener
	// Events reports problems that do not keep a volume from being made.
	Events record.EventRecorder
	// MaxCloneDepth is the most images that a clone may depend on, one through the
	// other. A clone that depends on more is flattened in the background before it gets
	// its volume. 0 flattens every clone; the highest value is image.CloneDepthLimit.
	MaxCloneDepth int
	// Lease guards what this replica does, and counts its operations: Drain it before
	// giving the lease back. Nil means that there is no lease.
	Lease *lease.Guard
	// Activity counts the operations, for other work to give way to. It may be nil.
	Activity *lease.Activity
}

// Provisioner implements the library's Provisioner and BlockProvisioner. It is
// safe for concurrent use.
type Provisioner struct {
	config Config
	// forbidden holds the namespaces whose user secrets RBAC keeps from us,
	// so that the log says it once.
	forbidden sync.Map
	// deleted holds the UIDs of volumes whose image was deleted lately.
	deleted *utilcache.Expiring
	fresh   *index.Freshness
}

var _ controller.BlockProvisioner = (*Provisioner)(nil)

// New returns a Provisioner, or an error that names the missing fields.
func New(c Config) (*Provisioner, error) {
	if c.Name == "" || c.Identity == "" {
		return nil, errors.New("provisioner: Name and Identity are required")
	}
	if c.Claims == nil || c.ClaimLister == nil || c.Volumes == nil || c.VolumeLister == nil || c.VolumeIndex.Cache == nil || c.Classes == nil {
		return nil, errors.New("provisioner: Claims, ClaimLister, Volumes, VolumeLister, VolumeIndex and Classes are required")
	}
	if c.Access == nil || c.Journal == nil || c.Trash == nil || c.Flattener == nil || c.Events == nil {
		return nil, errors.New("provisioner: Access, Journal, Trash, Flattener and Events are required")
	}
	if c.Lease == nil {
		c.Lease = lease.New(nil)
	}
	if c.Activity == nil {
		c.Activity = new(lease.Activity)
	}
	return &Provisioner{config: c, deleted: utilcache.NewExpiring(), fresh: index.NewFreshness(c.VolumeIndex, c.Volumes)}, nil
}

// keeper decides which images are ours.
func (p *Provisioner) keeper() ownership.Keeper {
	return ownership.Keeper{Identity: p.config.Identity, Cluster: p.config.ClusterUID}
}

// ownerOf returns the owner of the image for a claim.
func (p *Provisioner) ownerOf(options controller.ProvisionOptions) volume.Owner {
	return volume.Owner{
		Volume: options.PVName, Identity: p.config.Identity, Cluster: p.config.ClusterUID,
		Claim: options.PVC.Name, Namespace: options.PVC.Namespace,
	}
}

// Seen notes that the cache shows a volume: its image is no longer in flight, and the
// cache knows the volumes that existed before this one was released. Call it for every
// volume that the cache adds (before is nil), updates, or looks at once more.
func (p *Provisioner) Seen(before, pv *corev1.PersistentVolume) {
	p.fresh.Seen(before, pv)
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
