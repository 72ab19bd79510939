// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"slices"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// remedy follows a reason why the provisioner can't use an image.
const remedy = ": rename or remove it"

// check returns an error that wraps ErrConflict if an image is not the wanted one.
func (w Wanted) check(image rbd.Image) error {
	if reason := w.differs(image); reason != "" {
		return w.conflict(reason)
	}
	return nil
}

func (w Wanted) conflict(reason string) error {
	return fmt.Errorf("image %q in pool %q exists and %w: %s", w.Image.Name, w.Image.Pool, ErrConflict, reason)
}

// differs says why an image is not the wanted one and what to do about it; empty if it is.
// An unmarked clone has the size that its source had, and the source's metadata or none.
func (w Wanted) differs(image rbd.Image) string {
	// Ceph sets and clears operations as the image gains and loses parents and clones. For
	// striping, earlier versions followed Ceph's defaults.
	may := []string{rbd.FeatureOperations, rbd.FeatureStriping, rbd.FeatureDataPool}
	has := slices.DeleteFunc(slices.Clone(image.Features), func(f string) bool { return slices.Contains(may, f) })
	whose := volume.Foreign(image.Metadata, w.Owner)
	fresh, marked := w.isFresh(image), w.isMarked(image)
	// Surely made for this claim, as the class or the cluster's defaults were at that time.
	ours := marked && image.Metadata[volume.MetaIdentity] == w.Owner.Identity && image.Metadata[volume.MetaCluster] == w.Owner.Cluster
	// Before Ceph writes a clone's parent, the clone is empty and has no owner metadata.
	bare := w.Source != nil && w.Source.ID != "" && image.Parent == "" &&
		image.Metadata[volume.MetaVolume] == "" && image.Metadata[volume.MetaIdentity] == ""
	switch {
	case !fresh && volume.ForeignCluster(image.Metadata, w.Owner.Cluster) != "":
		return whose // that cluster may be using it: no advice to remove it
	case !fresh && whose != "":
		return whose + remedy
	case !fresh && image.SizeBytes != w.SizeBytes && (!bare || image.SizeBytes > w.SizeBytes):
		return "its size differs" + remedy
	case !ours && !slices.Equal(has, []string{rbd.FeatureLayering}):
		return "its features differ" + remedy
	case !ours && image.DataPool != w.DataPool:
		return "its data pool differs" + remedy
	case w.Source == nil && image.Parent != "":
		return "it is a clone of another image" + remedy
	case w.Source != nil && !fresh && !bare && !marked:
		return "it is not a clone of the claim's source" + remedy
	case marked:
		return ""
	case len(image.Watchers) > 0:
		// A provisioner that died before the mark stays a watcher for half a minute.
		return "its metadata does not name this claim's volume, and a client has it open: if that does not end, rename or remove it"
	case len(image.Snapshots) > 0:
		return "its metadata does not name this claim's volume, and it has snapshots" + remedy
	}
	return ""
}

// isFresh reports whether an image is an unmarked clone of the source, whether or not Ceph
// has copied the source's metadata yet.
func (w Wanted) isFresh(image rbd.Image) bool {
	s := w.Source
	return s != nil && s.ID != "" && image.Parent == s.ID &&
		volume.Foreign(image.Metadata, volume.Owner{Volume: s.Volume, Identity: w.Owner.Identity, Cluster: w.Owner.Cluster}) == ""
}

// isMarked reports whether an image's metadata names the owner's volume.
func (w Wanted) isMarked(image rbd.Image) bool {
	return image.Metadata[volume.MetaVolume] == w.Owner.Volume
}
