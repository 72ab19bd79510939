// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/ownership"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Those entries of an image's metadata that say whose it is, beside the one of
// its Kubernetes cluster. The first two are for people.
const (
	metaClaim          = ownership.MetaClaim
	metaClaimNamespace = ownership.MetaClaimNamespace
	metaVolume         = volume.MetaVolume
	metaIdentity       = volume.MetaIdentity
)

// errImageConflict says that an image of the wanted name is not the wanted one.
var errImageConflict = errors.New("is not the one for this claim")

// owner is whom the image for a claim is to belong to.
type owner struct {
	volume.Owner
	claim, namespace string
}

func (p *Provisioner) ownerOf(claim *corev1.PersistentVolumeClaim, pvName string) owner {
	return owner{p.ownedBy(pvName), claim.Name, claim.Namespace}
}

// ownedBy is the owner of the image of a volume of ours.
func (p *Provisioner) ownedBy(pvName string) volume.Owner {
	return volume.Owner{Volume: pvName, Identity: p.config.Identity, Cluster: p.config.ClusterUID}
}

// marks returns the metadata of the owner's image.
func (o owner) marks() map[string]string {
	marks := o.Marks()
	marks[metaClaim], marks[metaClaimNamespace] = o.claim, o.namespace
	return marks
}

// ensureImage makes the image, or finds the one that an earlier attempt made.
// Its size is then r.sizeBytes, its metadata says whose it is.
func (p *Provisioner) ensureImage(ctx context.Context, pool rbd.Pool, r request, owner owner) error {
	spec := rbd.ImageSpec{SizeBytes: r.wantedBytes(), DataPool: r.params.DataPool}
	err := pool.CreateImage(ctx, r.image, spec)
	if errors.Is(err, rbd.ErrImageExists) {
		found, err := p.adoptImage(ctx, pool, r, owner)
		if err != nil || found {
			return err
		}
		// What held the name were remains of an attempt that was cut off,
		// gone now.
		return p.createAndMark(ctx, pool, r, spec, owner)
	}
	if err != nil {
		return err
	}
	return p.mark(ctx, pool, r.image, owner)
}

func (p *Provisioner) createAndMark(ctx context.Context, pool rbd.Pool, r request, spec rbd.ImageSpec, owner owner) error {
	if err := pool.CreateImage(ctx, r.image, spec); err != nil {
		return err
	}
	return p.mark(ctx, pool, r.image, owner)
}

// mark writes into the image whose it is. A crash before it leaves an image
// without a mark, which the next attempt recognises by its name.
func (p *Provisioner) mark(ctx context.Context, pool rbd.Pool, image string, owner owner) error {
	if err := pool.SetMetadata(ctx, image, owner.marks()); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Image created", "image", image)
	return nil
}

// adoptImage looks at what holds the image's name. It reports whether that is
// the image for this claim, completing its metadata where an attempt was cut
// off; remains of an image it removes. An image that is not the claim's is an
// error that wraps errImageConflict, and stays as it is.
func (p *Provisioner) adoptImage(ctx context.Context, pool rbd.Pool, r request, owner owner) (bool, error) {
	image, err := pool.Image(ctx, r.image)
	if errors.Is(err, rbd.ErrImageNotFound) {
		klog.FromContext(ctx).V(2).Info("Removing what is left of a half-made image", "image", r.image)
		return false, removeIfThere(ctx, pool, r.image)
	}
	if err != nil {
		return false, err
	}
	if err := r.checkConflict(image, owner.Owner); err != nil {
		return false, err
	}
	if image.Metadata[metaFlattening] == flatteningPending {
		// Nobody has it yet.
		return false, fmt.Errorf("%w: it was to be flattened", errImageConflict)
	}
	if marked(image.Metadata, owner.marks()) {
		return true, nil
	}
	return true, p.mark(ctx, pool, r.image, owner)
}

// checkConflict returns an error that wraps errImageConflict when an image is not
// the one that r asks for.
func (r request) checkConflict(image rbd.Image, owner volume.Owner) error {
	if reason := conflict(image, r, owner); reason != "" {
		return fmt.Errorf("image %q in pool %q exists and %w: %s",
			r.image, r.params.Pool, errImageConflict, reason)
	}
	return nil
}

// removeIfThere removes an image, or what is left of one that can't be opened.
// That nothing is there is no error.
//
// A removal that was cut off leaves an image in the pool's trash, and so the name
// free for another one. Removing by name takes that other one first, and what is
// in the trash only when nothing has the name any more: hence twice.
func removeIfThere(ctx context.Context, pool rbd.Pool, image string) error {
	for range 2 {
		err := pool.RemoveImage(ctx, image)
		if errors.Is(err, rbd.ErrImageNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// conflict says why an image is not the one that r asks for, and what to do about
// it, or returns an empty text.
func conflict(image rbd.Image, r request, owner volume.Owner) string {
	const remedy = ": rename or remove it"
	mine := image.Metadata[metaVolume] == owner.Volume
	fresh := r.origin.isFresh(image, owner)
	if whose := volume.Foreign(image.Metadata, owner); whose != "" && !fresh {
		if volume.ForeignCluster(image.Metadata, owner.Cluster) != "" {
			return whose // it may be in use there
		}
		return whose + remedy
	}
	features := []string{rbd.FeatureLayering}
	if r.params.DataPool != "" {
		features = []string{rbd.FeatureDataPool, rbd.FeatureLayering}
	}
	bare := r.origin.mayBeBare(image)
	// That it depends on another, or that others depend on it.
	has := slices.DeleteFunc(slices.Clone(image.Features), func(f string) bool { return f == rbd.FeatureOperations })
	switch {
	// A clone that is not marked yet has the size that its source had.
	case image.SizeBytes != r.wantedBytes() && !fresh && !(bare && image.SizeBytes < r.wantedBytes()):
		return "its size differs" + remedy
	case !slices.Equal(has, features):
		return "its features differ" + remedy
	case image.DataPool != r.params.DataPool:
		return "its data pool differs" + remedy
	case r.isClone() && !mine && !fresh && !bare:
		return "it is not a clone of the claim's source" + remedy
	case !r.isClone() && image.Parent != "":
		return "it is a clone of another image" + remedy
	case !mine && len(image.Watchers) > 0:
		// A provisioner that died while it wrote that is a watcher for half a
		// minute.
		return "it does not say whose it is, and somebody uses it: if that does not end, rename or remove it"
	case !mine && len(image.Snapshots) > 0:
		return "it does not say whose it is, and it has snapshots" + remedy
	}
	return ""
}

func marked(metadata, marks map[string]string) bool {
	for key, value := range marks {
		if metadata[key] != value {
			return false
		}
	}
	return true
}
