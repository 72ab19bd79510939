// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// errOtherCluster says that monitors answered, but not those of the volume's
// cluster.
var errOtherCluster = errors.New("the monitors belong to another Ceph cluster")

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
	pool, location, err := p.openForDelete(ctx, pv, record)
	if err != nil {
		return err
	}
	defer pool.Close()
	pool.Pool = p.fence(pool.Pool)
	d := deletion{p, pool, location, pv.Name, record}
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
	identity, given := pv.Annotations[volume.AnnIdentity]
	return !given || identity == p.config.Identity
}

// openForDelete opens the volume's pool by what the volume itself says. What it
// does not say, or what no longer holds, is taken from its StorageClass if there
// still is one: the user and secret for volumes of the retired provisioner or
// whose secret is gone; the monitors when those of the volume do not answer and
// the class's lead to the same cluster.
func (p *Provisioner) openForDelete(ctx context.Context, pv *corev1.PersistentVolume, record volume.Record) (*access.Pool, volume.Location, error) {
	location, err := record.Location()
	if err != nil {
		return nil, location, err
	}
	class, classErr := p.classLocation(pv)
	if !record.Complete() {
		if classErr != nil {
			return nil, location, fmt.Errorf("the volume does not say who deletes its image, and %w: make the class again, "+
				"or set the volume's annotations %s, %s and %s", classErr,
				volume.AnnDeletionUser, volume.AnnDeletionSecretName, volume.AnnDeletionSecretNamespace)
		}
		location.User, location.Secret = class.User, class.Secret
	}

	moved := false
	for {
		pool, err := p.openSame(ctx, location, record.FSID, moved)
		switch {
		case err == nil:
			return pool, location, nil
		case classErr != nil:
			return nil, location, err
		case badCredentials(err) && (location.User != class.User || location.Secret != class.Secret):
			klog.FromContext(ctx).V(2).Info("Trying the user and secret of the StorageClass", "err", err)
			location.User, location.Secret = class.User, class.Secret
		case wrongMonitors(err, record) && !moved && hasOthers(class.Monitors, location.Monitors):
			klog.FromContext(ctx).V(2).Info("Trying the monitors of the StorageClass", "err", err)
			location.Monitors, moved = class.Monitors, true
		default:
			return nil, location, err
		}
	}
}

// openSame opens a pool if it is in the cluster that the volume was made in.
// Where the volume does not name its cluster, its own monitors are believed;
// others (moved) are not.
func (p *Provisioner) openSame(ctx context.Context, location volume.Location, fsid string, moved bool) (*access.Pool, error) {
	pool, err := p.config.Access.OpenForVolume(ctx, location)
	if err != nil {
		return nil, err
	}
	switch {
	case fsid == "" && moved:
		pool.Close()
		return nil, fmt.Errorf("the volume's monitors do not answer, and it does not say which Ceph cluster it is in: "+
			"if its StorageClass's monitors are the right ones, set the volume's annotation %s to what \"ceph fsid\" prints",
			volume.AnnClusterFSID)
	case fsid != "" && pool.FSID != fsid:
		pool.Close()
		return nil, fmt.Errorf("%w: they are of %q, the volume is in %q: correct the monitors of its StorageClass, "+
			"or the volume's annotation %s", errOtherCluster, pool.FSID, fsid, volume.AnnClusterFSID)
	}
	return pool, nil
}

func badCredentials(err error) bool {
	return errors.Is(err, access.ErrSecretNotFound) || errors.Is(err, access.ErrSecretForbidden) ||
		errors.Is(err, rbd.ErrInvalidKey) || errors.Is(err, rbd.ErrPermissionDenied)
}

func wrongMonitors(err error, record volume.Record) bool {
	switch {
	case errors.Is(err, rbd.ErrUnreachable), errors.Is(err, access.ErrNoAddress), errors.Is(err, errOtherCluster):
		return true
	case errors.Is(err, rbd.ErrPermissionDenied):
		// It may be another cluster that does not know us; which one the
		// class leads to can be told only where the volume names its own.
		return record.FSID != ""
	}
	return false
}

// hasOthers reports whether monitors has one that is not among known. What the
// kernel is given is compared, since people write one address in several ways.
func hasOthers(monitors, known []volume.Monitor) bool {
	return slices.ContainsFunc(monitors, func(m volume.Monitor) bool {
		address, ok := m.KernelAddress()
		return ok && !slices.ContainsFunc(known, func(k volume.Monitor) bool {
			other, ok := k.KernelAddress()
			return ok && other == address
		})
	})
}

// classLocation reads the class that the volume was made by.
func (p *Provisioner) classLocation(pv *corev1.PersistentVolume) (volume.Location, error) {
	class, err := p.config.Classes.Get(pv.Spec.StorageClassName)
	switch {
	case apierrors.IsNotFound(err):
		return volume.Location{}, fmt.Errorf("its StorageClass %q is gone", pv.Spec.StorageClassName)
	case err != nil:
		return volume.Location{}, fmt.Errorf("read StorageClass %q: %w", pv.Spec.StorageClassName, err)
	case class.Provisioner != p.config.Name:
		return volume.Location{}, fmt.Errorf("its StorageClass %q is now that of another provisioner", class.Name)
	}
	location, err := storageclass.ParseLocation(class.Parameters)
	if err != nil {
		return volume.Location{}, fmt.Errorf("its StorageClass %q is no help: %w", class.Name, err)
	}
	return location, nil
}
