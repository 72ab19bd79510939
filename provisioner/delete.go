// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/ownership"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// deletedFor is how long the provisioner remembers that it deleted a volume's image: the
// library asks again for every second volume or so, since its cache lags behind.
const deletedFor = time.Minute

// finalizer is the library's. It keeps a volume until its image is gone.
const finalizer = "external-provisioner.volume.kubernetes.io/finalizer"

// Delete moves the image of a released volume to the trash, for removal in the
// background; the library then deletes the volume. It returns nil when the image is in
// the trash or gone, a bare IgnoredError for volumes of another provisioner, and
// otherwise an error that makes the library try again.
func (p *Provisioner) Delete(ctx context.Context, pv *corev1.PersistentVolume) error {
	ctx, end, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	ctx = klog.NewContext(ctx, klog.FromContext(ctx).WithValues("PV", pv.Name))

	if !p.Owns(pv) {
		return &controller.IgnoredError{Reason: "it was made by a provisioner with another identity"}
	}
	if _, done := p.deleted.Get(pv.UID); done {
		return nil
	}
	record, err := volume.Read(pv)
	if err != nil {
		return fmt.Errorf("%w: to give its image up, set the volume's policy to Retain and delete the volume", err)
	}
	volumes := access.Volumes{Access: p.config.Access, Classes: p.config.Classes, Provisioner: p.config.Name}
	pool, err := volumes.Open(ctx, pv, record)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := (deletion{p, pool, pv, record}).run(ctx); err != nil {
		return access.Explain(err, pool.Location)
	}
	if pv.UID != "" { // every saved volume has one
		p.deleted.Set(pv.UID, true, deletedFor)
	}
	return nil
}

// Owns reports whether a volume that names our provisioner, which the library checks, is
// one of ours. One without the annotation of an identity is.
func (p *Provisioner) Owns(pv *corev1.PersistentVolume) bool {
	return volume.IsOf(pv, p.config.Identity)
}

// made reports whether this provisioner, and not only one of its name, made a volume.
func (p *Provisioner) made(pv *corev1.PersistentVolume) bool {
	return volume.MadeBy(pv, p.config.Name, p.config.Identity)
}

// deletion deletes one volume's image.
type deletion struct {
	*Provisioner
	pool   *access.Pool
	pv     *corev1.PersistentVolume
	record volume.Record
}

// String names the image, to begin errors with.
func (d deletion) String() string {
	return fmt.Sprintf("image %q in pool %q", d.record.Image, d.record.Pool)
}

func (d deletion) image() volume.ImageID { return d.pool.ID.Image(d.record.Image) }

// run moves the image to the trash, unless it is foreign or in use.
func (d deletion) run(ctx context.Context) error {
	// The trash finds a deletion either not begun or complete.
	unlock := d.config.Journal.Locks.Lock(d.image())
	defer unlock()
	image, err := d.lookAt(ctx)
	if err == nil {
		// Last, as it may cost a request.
		var waited bool
		if waited, err = d.fresh.CatchUp(ctx, d.pv); err == nil && waited {
			image, err = d.lookAt(ctx)
		}
	}
	switch {
	case errors.Is(err, rbd.ErrImageBusy):
		return d.stillRemoving()
	case errors.Is(err, rbd.ErrImageNotFound):
		return d.finish(ctx)
	case err != nil:
		return err
	}
	return d.trash(ctx, image)
}

// lookAt returns the image, unless something keeps it from being removed. Leftover
// snapshots of attempts to clone it do not: lookAt removes them on the way.
func (d deletion) lookAt(ctx context.Context) (rbd.Image, error) {
	found, err := d.pool.Image(ctx, d.record.Image)
	if err != nil {
		return found, err
	}
	if err := d.checkOthers(); err != nil {
		return found, err
	}
	keeper := ownership.Keeper{Identity: d.config.Identity, Cluster: d.config.ClusterUID}
	if err := keeper.Check(d.pv, d.record, found); err != nil {
		return found, err
	}
	switch {
	case len(found.Held) > 0: // first, since Ceph's rbd-mirror may be watching a copy
		return found, fmt.Errorf("%s: %w: it will be removed after: %s", d, rbd.ErrImageHeld, strings.Join(found.Held, " && "))
	case len(found.Watchers) > 0:
		return found, fmt.Errorf("%s: %w by %s: it will be removed once no client has it open or mapped",
			d, rbd.ErrImageInUse, strings.Join(found.Watchers, ", "))
	}
	snapshots, err := image.RemoveCloneSnapshots(ctx, d.pool, found.ID, found.Snapshots)
	if err == nil && len(snapshots) > 0 {
		err = fmt.Errorf("%s: %w: %s: it will be removed once they are gone", d, rbd.ErrImageHasSnapshots, strings.Join(snapshots, ", "))
	}
	return found, err
}

// checkOthers returns an error while a volume other than the deleted one names its image.
func (d deletion) checkOthers() error {
	volumes, err := d.config.VolumeIndex.Of(d.image())
	if err != nil {
		return err
	}
	for _, pv := range volumes {
		if pv.UID == d.pv.UID && pv.Name == d.pv.Name || index.Goes(pv) {
			continue
		}
		claim := ""
		if ref := pv.Spec.ClaimRef; ref != nil {
			claim = fmt.Sprintf(" (claim %s/%s)", ref.Namespace, ref.Name)
		}
		return fmt.Errorf("%s is also the image of volume %q%s: it will be removed once that volume is gone; if that volume is in another Ceph cluster, "+
			"set its annotation %s to what \"ceph fsid\" prints there", d, pv.Name, claim, volume.AnnClusterFSID)
	}
	return nil
}

// trash notes the pending deletion and moves the image to the trash.
func (d deletion) trash(ctx context.Context, image rbd.Image) error {
	removal := journal.Removal{
		ID:        image.ID,
		Image:     d.record.Image,
		Volume:    d.pv.Name,
		At:        time.Now(),
		Keep:      d.record.TrashRetention,
		SizeBytes: image.SizeBytes,
		Parent:    image.Parent,
	}
	switch err := d.config.Trash.Move(ctx, d.pool, removal); {
	case errors.Is(err, rbd.ErrImageNotFound):
		// Another client has removed it since.
		return d.finish(ctx)
	case err != nil:
		return err
	}
	values := []any{"image", removal.Image, "pool", d.record.Pool, "id", removal.ID}
	if removal.Keep > 0 {
		values = append(values, "keptUntil", removal.Due().UTC().Format(time.RFC3339))
	}
	klog.FromContext(ctx).Info("Image moved to the trash", values...)
	return nil
}

// finish is for an image that no client can open. An attempt may have moved it to the trash
// or removed it, or been cut off: then its data are in the trash, or leftovers hold the name.
func (d deletion) finish(ctx context.Context) error {
	removals, _, err := d.config.Journal.Removals.Read(ctx, d.pool)
	if err != nil {
		return err
	}
	done := "Image was gone already"
	for _, removal := range removals {
		if removal.Image != d.record.Image || removal.Volume != d.pv.Name {
			continue
		}
		done = "Image was in the trash already"
		// If an OSD did not answer, the move may have ended long after its note: by the
		// old time, someone else would have put the image there.
		removal.At = time.Now()
		// Completes a move that was cut off; usually none was.
		if err := d.config.Trash.Move(ctx, d.pool, removal); err != nil && !errors.Is(err, rbd.ErrImageNotFound) {
			return err
		}
	}
	err = image.RemoveIfThere(ctx, d.pool, d.record.Image)
	switch {
	case errors.Is(err, rbd.ErrTimeout):
		return d.stillRemoving()
	case errors.Is(err, rbd.ErrImageInUse):
		return fmt.Errorf("%s: %w by a removal that was interrupted, which ends within half a minute: will retry, nothing needs to be done",
			d, rbd.ErrImageInUse)
	case err != nil:
		return err
	}
	klog.FromContext(ctx).Info(done, "image", d.record.Image, "pool", d.record.Pool)
	return nil
}

// stillRemoving is the error while an earlier call on the image has not ended. If that is its
// removal, Ceph need not be at fault: librbd deletes every object that the image could have.
func (d deletion) stillRemoving() error {
	return fmt.Errorf("%s is still being removed, which takes longer the larger it is, or an earlier call on it had no answer: "+
		"will retry; if this does not end, check the health of the Ceph cluster", d)
}

// RunByHand lets volumes go that people delete before Kubernetes releases them, until ctx
// ends. The library would keep them for ever. Nobody said that their data may go, so their
// images stay. Run it once, while leading.
func (p *Provisioner) RunByHand(ctx context.Context) { p.byHand.Run(ctx, 1, p.letGo) }

// isStuck reports whether only RunByHand takes the finalizer off a volume of ours. The library
// does where the policy is not Delete, and a Bound volume is released once its claim is gone.
func (p *Provisioner) isStuck(pv *corev1.PersistentVolume) bool {
	return pv.DeletionTimestamp != nil && slices.Contains(pv.Finalizers, finalizer) && p.made(pv) &&
		pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete &&
		pv.Status.Phase != corev1.VolumeReleased && pv.Status.Phase != corev1.VolumeBound
}

// letGo takes the finalizer off a volume. If the volume has changed, it comes again.
func (p *Provisioner) letGo(ctx context.Context, name string) error {
	pv, err := p.config.VolumeLister.Get(name)
	if err != nil || !p.isStuck(pv) { // a cache's only error is that the volume is gone
		return nil
	}
	ctx, end, err := p.config.Lease.Begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	patch := fmt.Appendf(nil, `[{"op":"test","path":"/metadata/resourceVersion","value":%q},{"op":"remove","path":"/metadata/finalizers/%d"}]`,
		pv.ResourceVersion, slices.Index(pv.Finalizers, finalizer))
	_, err = p.config.Volumes.PersistentVolumes().Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{})
	return err
}

// Gone sends an event about a volume that was deleted without its image. Call it for every
// volume that the cache drops; it passes over tombstones, which may be older than the release.
func (p *Provisioner) Gone(ctx context.Context, obj any) {
	pv, ok := obj.(*corev1.PersistentVolume)
	if !ok || !p.made(pv) || !p.config.Lease.Held() || index.Goes(pv) {
		return
	}
	record, err := volume.Read(pv)
	if _, removed := p.deleted.Get(pv.UID); removed || err != nil {
		return
	}
	remedy := fmt.Sprintf("to have it in a volume again, see docs/trash.md; to remove it, once \"rbd image-meta list %[1]s/%[2]s\" shows "+
		"that it is no other cluster's, run: rbd rm %[1]s/%[2]s", record.Pool, record.Image)
	if others, err := p.config.VolumeIndex.Of(record.PoolID().Image(record.Image)); err == nil && len(others) > 0 {
		remedy = fmt.Sprintf("volume %q names it, too", others[0].Name)
	} else if ref := cmp.Or(pv.Spec.ClaimRef, new(corev1.ObjectReference)); ref.UID != "" {
		if claim, err := p.config.ClaimLister.PersistentVolumeClaims(ref.Namespace).Get(ref.Name); err == nil && claim.UID == ref.UID {
			remedy = fmt.Sprintf("it is that of claim %s/%s, which still exists", ref.Namespace, ref.Name)
		}
	}
	klog.FromContext(ctx).Info("A volume was deleted without its image", "PV", pv.Name, "image", record.Image, "pool", record.Pool)
	p.config.Events.Eventf(pv, corev1.EventTypeNormal, "ImageNotRemoved", "the volume was deleted while it was %s, with the policy %s, "+
		"so its image was not removed: %s", pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy, remedy)
}
