// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// deletedFor is how long it is remembered that a volume's image was deleted. The
// library asks again for every second volume or so, as its cache does not yet show
// that it deleted that: Ceph need not be asked again, too.
const deletedFor = time.Minute

// Delete moves the image of a released volume to the trash, from where it is
// removed in the background; the library then deletes the volume. It returns nil
// when the image is there or gone, a bare IgnoredError for volumes of another
// provisioner, and else an error upon which the library tries again.
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
		return err
	}
	volumes := access.Volumes{Access: p.config.Access, Classes: p.config.Classes, Provisioner: p.config.Name}
	pool, location, err := volumes.Open(ctx, pv, record)
	if err != nil {
		return err
	}
	defer pool.Close()
	d := deletion{p, pool, location, pv, record}
	if err := d.run(ctx); err != nil {
		return access.Explain(err, location)
	}
	if pv.UID != "" { // as every volume has that was saved
		p.deleted.Set(pv.UID, true, deletedFor)
	}
	return nil
}

// Owns reports whether a volume that names our provisioner is one of ours.
// Without the annotation of its identity it is, by
// pv.kubernetes.io/provisioned-by, which the library looks at.
func (p *Provisioner) Owns(pv *corev1.PersistentVolume) bool {
	return volume.IsOf(pv, p.config.Identity)
}
