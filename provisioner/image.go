// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// The entries of an image's metadata that say whose it is. The first three are
// for people, who see them with "rbd image-meta list"; metaVolume and
// metaIdentity also keep an image from being taken for another.
const (
	metaClaim          = "kubernetes.io/created-for/pvc/name"
	metaClaimNamespace = "kubernetes.io/created-for/pvc/namespace"
	metaVolume         = volume.MetaVolume
	metaIdentity       = volume.MetaIdentity
)

// errImageConflict says that an image of the wanted name is not the wanted one.
var errImageConflict = errors.New("is not the one for this claim")

// ownerOf returns the metadata of the image for a claim.
func (p *Provisioner) ownerOf(claim *corev1.PersistentVolumeClaim, pvName string) map[string]string {
	return map[string]string{
		metaClaim:          claim.Name,
		metaClaimNamespace: claim.Namespace,
		metaVolume:         pvName,
		metaIdentity:       p.config.Identity,
	}
}

// ensureImage makes the image, or finds the one that an earlier attempt made.
// Its size is then r.sizeBytes, its metadata says whose it is.
func (p *Provisioner) ensureImage(ctx context.Context, pool rbd.Pool, r request, owner map[string]string) error {
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
		return createFault(err)
	}
	return p.mark(ctx, pool, r.image, owner)
}

func (p *Provisioner) createAndMark(ctx context.Context, pool rbd.Pool, r request, spec rbd.ImageSpec, owner map[string]string) error {
	if err := pool.CreateImage(ctx, r.image, spec); err != nil {
		return createFault(err)
	}
	return p.mark(ctx, pool, r.image, owner)
}

// createFault marks those errors of CreateImage that are a plain no: the image
// was not made.
func createFault(err error) error {
	for _, no := range []error{rbd.ErrPermissionDenied, rbd.ErrPoolNotFound, rbd.ErrNotSupported} {
		if errors.Is(err, no) {
			return errNotStarted{err}
		}
	}
	return err
}

// mark writes into the image whose it is. A crash before it leaves an image
// without a mark, which the next attempt recognises by its name.
func (p *Provisioner) mark(ctx context.Context, pool rbd.Pool, image string, owner map[string]string) error {
	if err := pool.SetMetadata(ctx, image, owner); err != nil {
		return err
	}
	klog.FromContext(ctx).Info("Image created", "image", image)
	return nil
}

// adoptImage looks at what holds the image's name. It reports whether that is
// the image for this claim, completing its metadata where an attempt was cut
// off; remains of an image it removes. An image that is not the claim's is an
// error that wraps errImageConflict, and stays as it is.
func (p *Provisioner) adoptImage(ctx context.Context, pool rbd.Pool, r request, owner map[string]string) (bool, error) {
	image, err := pool.Image(ctx, r.image)
	if errors.Is(err, rbd.ErrImageNotFound) {
		klog.FromContext(ctx).V(2).Info("Removing what is left of a half-made image", "image", r.image)
		return false, removeIfThere(ctx, pool, r.image)
	}
	if err != nil {
		return false, err
	}
	if err := r.checkConflict(image, owner); err != nil {
		return false, err
	}
	if image.Metadata[metaFlattening] == flatteningPending {
		// Nobody has it yet.
		return false, errNotStarted{fmt.Errorf("%w: it was to be flattened", errImageConflict)}
	}
	if marked(image.Metadata, owner) {
		return true, nil
	}
	return true, p.mark(ctx, pool, r.image, owner)
}

// checkConflict returns an error that wraps errImageConflict when an image is not
// the one that r asks for.
func (r request) checkConflict(image rbd.Image, owner map[string]string) error {
	if reason := conflict(image, r, owner); reason != "" {
		return errNotStarted{fmt.Errorf("image %q in pool %q exists and %w: %s",
			r.image, r.params.Pool, errImageConflict, reason)}
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
func conflict(image rbd.Image, r request, owner map[string]string) string {
	const remedy = ": rename or remove it"
	mine := image.Metadata[metaVolume] == owner[metaVolume]
	fresh := r.origin.isFresh(image, owner[metaIdentity])
	if whose := volume.Foreign(image.Metadata, owner); whose != "" && !fresh {
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

func marked(metadata, owner map[string]string) bool {
	for key, value := range owner {
		if metadata[key] != value {
			return false
		}
	}
	return true
}
