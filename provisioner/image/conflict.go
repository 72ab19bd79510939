// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// What follows a reason where the image is of no use to the provisioner.
const remedy = ": rename or remove it"

// check returns an error that wraps ErrConflict when an image is not the wanted one.
func (w Wanted) check(image rbd.Image) error {
	if reason := w.differs(image); reason != "" {
		return w.conflict(reason)
	}
	return nil
}

func (w Wanted) conflict(reason string) error {
	return fmt.Errorf("image %q in pool %q exists and %w: %s", w.Image.Name, w.Image.Pool, ErrConflict, reason)
}

// differs says why an image is not the wanted one, and what to do about it; or it
// returns an empty text.
func (w Wanted) differs(image rbd.Image) string {
	if w.Source != nil {
		return w.differsAsClone(image)
	}
	if whose := w.foreign(image); whose != "" {
		return whose
	}
	if image.SizeBytes != w.SizeBytes {
		return "its size differs" + remedy
	}
	if reason := w.differsInKind(image); reason != "" {
		return reason
	}
	if image.Parent != "" {
		return "it is a clone of another image" + remedy
	}
	return w.inUse(image)
}

// differsAsClone is differs for a clone. One that is not marked yet has the size that
// its source had, and the source's metadata or none.
func (w Wanted) differsAsClone(image rbd.Image) string {
	fresh, bare := w.isFresh(image), w.mayBeBare(image)
	if !fresh {
		if whose := w.foreign(image); whose != "" {
			return whose
		}
		if image.SizeBytes != w.SizeBytes && (!bare || image.SizeBytes > w.SizeBytes) {
			return "its size differs" + remedy
		}
	}
	if reason := w.differsInKind(image); reason != "" {
		return reason
	}
	if !fresh && !bare && !w.isMarked(image) {
		return "it is not a clone of the claim's source" + remedy
	}
	return w.inUse(image)
}

// isFresh reports whether an image is a clone of its source that is not marked yet:
// Ceph has copied the source's metadata, or not yet.
func (w Wanted) isFresh(image rbd.Image) bool {
	s := w.Source
	return s != nil && s.ID != "" && image.Parent == s.ID && volume.Foreign(image.Metadata, volume.Owner{
		Volume: s.Volume, Identity: w.Owner.Identity, Cluster: w.Owner.Cluster,
	}) == ""
}

// mayBeBare reports whether an image may be what is there before Ceph has written into
// a clone what it is a clone of: nobody's, and empty.
func (w Wanted) mayBeBare(image rbd.Image) bool {
	return w.Source != nil && w.Source.ID != "" && image.Parent == "" &&
		image.Metadata[volume.MetaVolume] == "" && image.Metadata[volume.MetaIdentity] == ""
}

// isMarked reports whether an image names the owner's volume.
func (w Wanted) isMarked(image rbd.Image) bool {
	return image.Metadata[volume.MetaVolume] == w.Owner.Volume
}

// foreign says whose an image is, if it is somebody else's. One of another Kubernetes
// cluster may be in use there: no advice is given to remove it.
func (w Wanted) foreign(image rbd.Image) string {
	whose := volume.Foreign(image.Metadata, w.Owner)
	if whose == "" || volume.ForeignCluster(image.Metadata, w.Owner.Cluster) != "" {
		return whose
	}
	return whose + remedy
}

// differsInKind compares what no call changes once an image is made.
func (w Wanted) differsInKind(image rbd.Image) string {
	features := []string{rbd.FeatureLayering}
	if w.DataPool != "" {
		features = []string{rbd.FeatureDataPool, rbd.FeatureLayering}
	}
	// That it depends on another, or that others depend on it, comes and goes.
	has := slices.DeleteFunc(slices.Clone(image.Features), func(f string) bool { return f == rbd.FeatureOperations })
	switch {
	case !slices.Equal(has, features):
		return "its features differ" + remedy
	case image.DataPool != w.DataPool:
		return "its data pool differs" + remedy
	}
	return ""
}

// inUse says that somebody uses an image that does not say whose it is.
func (w Wanted) inUse(image rbd.Image) string {
	switch {
	case w.isMarked(image):
		return ""
	case len(image.Watchers) > 0:
		// A provisioner that died while it wrote that is a watcher for half a minute.
		return "it does not say whose it is, and somebody uses it: if that does not end, rename or remove it"
	case len(image.Snapshots) > 0:
		return "it does not say whose it is, and it has snapshots" + remedy
	}
	return ""
}
