// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/monitors"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// ErrOtherCluster says that the monitors that answered are not of the volume's cluster.
var ErrOtherCluster = errors.New("the monitors belong to another Ceph cluster")

// Volumes opens the pools of existing volumes. All fields are required.
type Volumes struct {
	Access  *Access
	Classes storagelisters.StorageClassLister
	// Provisioner is the provisioner's name in StorageClasses; Volumes does not trust
	// classes that name another one.
	Provisioner string
}

// Open opens the volume's pool by what the volume itself says; record is what Read
// returns for it. What the volume does not say, or what no longer holds, comes from its
// StorageClass if there still is one: the user and secret for volumes of the retired
// provisioner or whose secret is gone; the monitors if the volume's do not answer and the
// class's lead to the same cluster.
//
// The errors are those of OpenForVolume, and ErrOtherCluster.
func (v Volumes) Open(ctx context.Context, pv *corev1.PersistentVolume, record volume.Record) (*Pool, error) {
	location, err := record.Location()
	if err != nil {
		return nil, fmt.Errorf("%w: to give the image up, set the volume's policy to Retain and delete the volume", err)
	}
	class, classErr := v.classLocation(pv)
	if !record.Complete() {
		if classErr != nil {
			return nil, fmt.Errorf("the volume does not say who deletes its image, and %w: make the class again, "+
				"or set the volume's annotations %s, %s and %s", classErr,
				volume.AnnDeletionUser, volume.AnnDeletionSecretName, volume.AnnDeletionSecretNamespace)
		}
		location.User, location.Secret = class.User, class.Secret
	}

	moved := false
	for {
		pool, err := v.openSame(ctx, location, record.FSID, moved)
		switch {
		case err == nil:
			return pool, nil
		case classErr != nil:
			return nil, remedied(err, pv.Name)
		case badCredentials(err) && (location.User != class.User || location.Secret != class.Secret):
			klog.FromContext(ctx).V(2).Info("Trying the user and secret of the StorageClass", "err", err)
			location.User, location.Secret = class.User, class.Secret
		case wrongMonitors(err, record) && !moved && hasOthers(class.Monitors, location.Monitors):
			klog.FromContext(ctx).V(2).Info("Trying the monitors of the StorageClass", "err", err)
			location.Monitors, moved = class.Monitors, true
		default:
			return nil, remedied(err, pv.Name)
		}
	}
}

// remedied adds what can be done where nobody can bring back what a volume names.
func remedied(err error, name string) error {
	switch {
	case badCredentials(err):
		return fmt.Errorf("%w; to name another user and secret in the volume, run: kubectl annotate --overwrite pv %s %s=USER %s=SECRET %s=NAMESPACE",
			err, name, volume.AnnDeletionUser, volume.AnnDeletionSecretName, volume.AnnDeletionSecretNamespace)
	case errors.Is(err, rbd.ErrPoolNotFound):
		return fmt.Errorf("%w; if it is gone for good, so is the image: to delete the volume once its claim is gone, run: kubectl patch pv %[2]s -p "+
			`'{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}' && kubectl delete pv %[2]s`, err, name)
	}
	return err
}

// openSame opens a pool if it is in the cluster that the volume was made in. If the volume
// does not name that, openSame trusts the volume's own monitors, but no others (moved).
func (v Volumes) openSame(ctx context.Context, location volume.Location, fsid string, moved bool) (*Pool, error) {
	pool, err := v.Access.OpenForVolume(ctx, location)
	if err != nil {
		return nil, err
	}
	switch {
	case fsid == "" && moved:
		pool.Close()
		return nil, fmt.Errorf("the volume's monitors do not answer, and it does not say which Ceph cluster it is in: "+
			"if its StorageClass's monitors are the right ones, set the volume's annotation %s to what \"ceph fsid\" prints",
			volume.AnnClusterFSID)
	case fsid != "" && pool.ID.FSID != fsid:
		pool.Close()
		return nil, fmt.Errorf("%w: they are of %q, the volume is in %q: name the right monitors in its StorageClass, "+
			"or correct the volume's annotation %s", ErrOtherCluster, pool.ID.FSID, fsid, volume.AnnClusterFSID)
	}
	return pool, nil
}

func badCredentials(err error) bool {
	return errors.Is(err, ErrSecretNotFound) || errors.Is(err, ErrSecretForbidden) || badKey(err)
}

func wrongMonitors(err error, record volume.Record) bool {
	return errors.Is(err, rbd.ErrUnreachable) || errors.Is(err, monitors.ErrNoAddress) || errors.Is(err, ErrOtherCluster) ||
		// Another cluster may have answered that does not know us. Only if the volume
		// names its own can we tell where the class leads.
		errors.Is(err, rbd.ErrPermissionDenied) && record.FSID != ""
}

// hasOthers reports whether list has one that is not among known. It compares what
// Linux gets, since people write one address in several ways; and only by a message
// protocol that both have, since an in-tree volume lists addresses of version 1 alone.
func hasOthers(list, known []volume.Monitor) bool {
	compared := false
	for _, protocol := range []volume.Protocol{volume.ProtocolV1, volume.ProtocolV2} {
		listed, old := kernelAddresses(list, protocol), kernelAddresses(known, protocol)
		if listed.Len() == 0 || old.Len() == 0 {
			continue
		}
		if !old.IsSuperset(listed) {
			return true
		}
		compared = true
	}
	return !compared
}

func kernelAddresses(list []volume.Monitor, protocol volume.Protocol) sets.Set[string] {
	addresses := sets.New[string]()
	for _, m := range list {
		if address, ok := m.KernelAddress(protocol); ok {
			addresses.Insert(address)
		}
	}
	return addresses
}

// classLocation reads the location from the class that the volume was made by.
func (v Volumes) classLocation(pv *corev1.PersistentVolume) (volume.Location, error) {
	class, err := v.Classes.Get(pv.Spec.StorageClassName)
	if err != nil {
		// A cache has no other error.
		return volume.Location{}, fmt.Errorf("its StorageClass %q is gone", pv.Spec.StorageClassName)
	}
	if class.Provisioner != v.Provisioner {
		return volume.Location{}, fmt.Errorf("its StorageClass %q is now that of another provisioner", class.Name)
	}
	location, err := storageclass.ParseLocation(class.Parameters)
	if err != nil {
		return volume.Location{}, fmt.Errorf("its StorageClass %q can't be used: %w", class.Name, err)
	}
	return location, nil
}
