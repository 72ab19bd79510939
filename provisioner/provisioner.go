// SPDX-License-Identifier: Apache-2.0

// Package provisioner makes an image and a PersistentVolume for a claim, and
// removes the image of a released volume: the interfaces of
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

// DefaultName is what a StorageClass names as its provisioner. The retired
// rbd-provisioner had the same.
const DefaultName = "ceph.com/rbd"

// Trash takes the images of deleted volumes that were moved to their pool's trash, and
// removes them in the background.
type Trash interface {
	// Add takes one. The location is how its pool was opened.
	Add(pool volume.PoolID, location volume.Location, removal journal.Removal)
}

// Flattener flattens clones in the background.
type Flattener interface {
	// Request has a clone flattened, unless that is under way. The error says that it
	// is, and why the last attempt failed; it is never nil. The location is how the
	// clone's pool was opened, parent the ID of the image that the clone depends on.
	Request(clone volume.ImageID, location volume.Location, parent string) error
}

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
	// pools, and copies of volumes be restored in them. Empty means not to remove an
	// image that belongs to a cluster.
	ClusterUID string

	// Claims and ClaimLister are the server's claims, and the cache's.
	Claims      corev1client.PersistentVolumeClaimsGetter
	ClaimLister corelisters.PersistentVolumeClaimLister
	// Volumes and VolumeLister are the server's volumes, and the cache's. VolumeIndex
	// is the cache itself.
	Volumes      corev1client.PersistentVolumesGetter
	VolumeLister corelisters.PersistentVolumeLister
	VolumeIndex  index.Volumes
	Classes      storagelisters.StorageClassLister
	Access       *access.Access
	Journal      *journal.Journal
	Trash        Trash
	Flattener    Flattener
	// Events tells people of what does not keep a volume from being made.
	Events record.EventRecorder
	// MaxCloneDepth is on how many images a clone may depend, one through the
	// other; one that depends on more is flattened, in the background, before it
	// gets its volume. 0 flattens every clone; at most image.CloneDepthLimit.
	MaxCloneDepth int
	// Lease guards what this replica does, and counts its operations: Drain it before
	// the lease is given back. Nil means that there is no lease.
	Lease *lease.Guard
	// Activity counts the operations, for others to give way to; nil for nobody.
	Activity *lease.Activity
}

// Provisioner implements the library's Provisioner and BlockProvisioner. It is
// safe for concurrent use.
type Provisioner struct {
	config Config
	// forbidden holds the namespaces whose user secrets RBAC keeps from us,
	// so that the log says it once.
	forbidden sync.Map
	// deleted has the UIDs of volumes whose image was deleted lately.
	deleted *utilcache.Expiring
	fresh   *index.Freshness
}

var _ controller.BlockProvisioner = (*Provisioner)(nil)

// New returns a Provisioner, or an error that names what c lacks.
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

// keeper says whose images are ours.
func (p *Provisioner) keeper() ownership.Keeper {
	return ownership.Keeper{Identity: p.config.Identity, Cluster: p.config.ClusterUID}
}

// ownerOf is whom the image for a claim is to belong to.
func (p *Provisioner) ownerOf(options controller.ProvisionOptions) volume.Owner {
	return volume.Owner{
		Volume: options.PVName, Identity: p.config.Identity, Cluster: p.config.ClusterUID,
		Claim: options.PVC.Name, Namespace: options.PVC.Namespace,
	}
}

// Seen says that the cache shows a volume: its image is not in flight any more, and
// volumes that were there before it was released are known. To be called for every volume
// that is added (before is nil), updated, or looked at once more.
func (p *Provisioner) Seen(before, pv *corev1.PersistentVolume) {
	p.fresh.Seen(before, pv)
	if !p.Owns(pv) {
		return
	}
	if record, err := volume.Read(pv); err == nil { // or it was not made by this program
		p.config.Journal.InFlight.Saved(pv.Name, record.PoolID().Image(record.Image))
	}
}

// SupportsBlock says that volumes may be of mode Block.
func (p *Provisioner) SupportsBlock(context.Context) bool { return true }

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
	over := p.config.Activity.Begin()
	return ctx, func() { over(); end() }, nil
}
