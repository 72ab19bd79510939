// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/utils/ptr"
)

const (
	// namedProvisioner is the name of provisioners that run with -use-pv-name beside
	// those of the fixtures.
	namedProvisioner = "example.com/named"
	// clones ends the names of the neighbour's classes for clones.
	clones = "-clones"
)

// Volumes of one cluster are restored in a second one, from a backup or for a migration,
// while both use the same Ceph. Whatever then happens to the copies, the images belong to
// the first cluster until a person hands them over.
func TestMovedVolumes(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	f.meet(shortLease...)
	plain, named, kept := f.name+"-plain", f.name+"-named", f.name+"-kept"
	for class, provisioner := range map[string]string{plain: "ceph.com/rbd", named: namedProvisioner} {
		f.class(class, provisioner, corev1.PersistentVolumeReclaimDelete)
		f.neighbour.class(class, provisioner, corev1.PersistentVolumeReclaimDelete, growsByVolume)
		f.neighbour.class(class+clones, provisioner, corev1.PersistentVolumeReclaimDelete)
	}
	f.class(kept, "ceph.com/rbd", corev1.PersistentVolumeReclaimDelete, func(class *storagev1.StorageClass) {
		class.Parameters["trashRetention"] = "1h"
	})

	for _, c := range []struct {
		name   string
		change func(backup) backup
	}{
		{"its", nil},
		{"another", backup.renamed},
	} {
		t.Run("restored under "+c.name+" name", func(t *testing.T) {
			t.Parallel()
			f.on(t).refusesRestored("restored-"+c.name, plain, c.change)
		})
		t.Run("handed over under "+c.name+" name", func(t *testing.T) {
			t.Parallel()
			f.on(t).handsOver("handed-over-"+c.name, plain, c.change)
		})
	}
	t.Run("restored with images named like volumes", func(t *testing.T) {
		t.Parallel()
		f := f.on(t)
		for _, side := range []*fixture{f, f.neighbour} {
			p := side.start([]string{"PROVISIONER_NAME=" + namedProvisioner}, "-use-pv-name", "-leader-election=false")
			t.Cleanup(func() {
				if !t.Failed() {
					side.must(p.Stop())
				}
			})
		}
		if m := f.refusesRestored("named", named, nil); m.original.image != m.pv.Name {
			t.Errorf("the image is %s, want the name of volume %s", m.original.image, m.pv.Name)
		}
	})
	t.Run("restored without claims", func(t *testing.T) {
		t.Parallel()
		f.on(t).refusesReleased()
	})
	t.Run("image in the trash", func(t *testing.T) {
		t.Parallel()
		f.on(t).leavesTrash(kept)
	})
}

// growsByVolume makes the volumes of a class growable by any program that opens their
// images with the secret that the volumes name. Up to Kubernetes 1.30,
// kube-controller-manager takes the class's secret; where the command rbd is installed,
// as here and not in its container image, it grows the images of any owner.
func growsByVolume(class *storagev1.StorageClass) {
	class.AllowVolumeExpansion = ptr.To(true)
	class.Parameters["adminSecretName"] = "none"
}

// moved is a volume of a cluster, and what was restored of it in the neighbour.
type moved struct {
	claim *corev1.PersistentVolumeClaim
	// original is claim's volume, with its image.
	original survivor

	restored *corev1.PersistentVolumeClaim
	pv       *corev1.PersistentVolume
}

// move makes a volume with data and restores it in the neighbour from a backup, which
// change, unless it is nil, changes before. The neighbour knows the owner of the image.
func (f *fixture) move(name, class string, change func(backup) backup) moved {
	f.Helper()
	claim, err := f.request(f.ctx(), class, name)
	f.must(err)
	saved := f.backup(claim)
	m := moved{claim: claim, original: f.write(f.bound(claim))}
	if change != nil {
		saved = change(saved)
	}
	m.pv, m.restored = f.neighbour.restore(saved)
	f.neighbour.told(m.pv, "ImageNotOwned", 1, f.uid(), remedy(m.pv, f.uid()))
	return m
}

// remedy is what the event of a bound volume says to do if that has moved for good.
func remedy(pv *corev1.PersistentVolume, former string) string {
	return fmt.Sprintf("kubectl annotate --overwrite pv %s %s=%s", pv.Name, formerCluster, former)
}

// dropRemedy is what the event of a released volume says to do with it.
const dropRemedy = "persistentVolumeReclaimPolicy to Retain and delete the volume"

// refusesRestored makes the neighbour grow, clone and delete a volume that was restored
// there. The neighbour does none of that to the image, which is removed with the first
// cluster's volume. Then the copy is deleted without help.
func (f *fixture) refusesRestored(name, class string, change func(backup) backup) moved {
	m, other, uid := f.move(name, class, change), f.neighbour, f.uid()

	other.ask(m.restored)
	other.told(m.restored, "VolumeResizeFailed", 1, uid)
	clone, err := other.request(f.ctx(), class+clones, name+"-clone", func(c *corev1.PersistentVolumeClaim) {
		c.Namespace = m.restored.Namespace
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: cloneKind, Name: m.restored.Name}
	})
	f.must(err)
	other.told(clone, "ProvisioningFailed", 1, uid)
	other.delete(clone, m.restored)
	other.told(m.pv, "VolumeFailedDelete", 2, uid, dropRemedy)
	other.released(m.pv)
	f.survived(m.original)

	f.delete(m.claim)
	f.gone(m.original.pv)
	f.purged(m.original.pv) // while the one that deleted it runs
	other.gone(m.pv)
	return m
}

// refusesReleased restores several volumes without their claims, which Kubernetes then
// counts as released. None of the images is removed, and what the events advise removes
// the copies.
func (f *fixture) refusesReleased() {
	claims := f.claims("claimless", 5)
	// One of them stands for all: the end of the test shows that the others are still
	// there.
	original := f.write(f.bound(claims[0]))
	var copies []*corev1.PersistentVolume
	for _, claim := range claims {
		finalizers := f.bound(claim).Finalizers
		saved := f.backup(claim).pv
		// As "kubectl get" prints it, and "kubectl create" takes it.
		saved.Spec.ClaimRef.UID, saved.Finalizers = claim.UID, finalizers
		pv, err := f.neighbour.kube.Client.CoreV1().PersistentVolumes().Create(f.ctx(), saved, metav1.CreateOptions{})
		f.must(err)
		copies = append(copies, pv)
	}
	for _, pv := range copies {
		f.neighbour.told(pv, "VolumeFailedDelete", 2, f.uid(), dropRemedy)
		f.neighbour.released(pv)
	}
	// If an image were handed over to a volume that is to be removed, it would be gone at
	// once, which no person can have meant.
	f.neighbour.handOver(copies[0], f.uid())
	seen := f.neighbour.told(copies[0], "VolumeFailedDelete", 3, f.uid(), dropRemedy)
	f.neighbour.told(copies[0], "VolumeFailedDelete", seen+1, f.uid(), dropRemedy)
	f.neighbour.giveUp(copies...)
	f.survived(original)
}

// leavesTrash deletes a volume whose class keeps the image in the trash, and then the
// copy of the volume. The image stays in the trash, and can be restored.
func (f *fixture) leavesTrash(class string) {
	m := f.move("trash", class, nil)
	id := f.imageID(m.original.image)
	f.delete(m.claim)
	f.gone(m.original.pv)
	f.neighbour.delete(m.restored)
	f.neighbour.gone(m.pv)
	trash, err := f.ceph.Trash(f.ctx(), f.name)
	f.must(err)
	if !slices.Contains(trash, m.original.image) {
		f.Fatalf("in the trash are %v, want image %s", trash, m.original.image)
	}
	f.rbd("trash", "restore", id)
	if diff := cmp.Diff(m.original.state, f.state(m.original.image)); diff != "" {
		f.Errorf("the image was touched (-want +got):\n%s", diff)
	}
	f.rbd("rm", "--no-progress", m.original.image) // no volume names it any more
}

// handsOver moves a volume for good. Its image then belongs to the neighbour, which grows
// and removes it. The first cluster is refused.
func (f *fixture) handsOver(name, class string, change func(backup) backup) {
	m, other := f.move(name, class, change), f.neighbour
	image, from, to := m.original.image, f.uid(), f.neighbour.uid()

	// A hand-over that does not name the former owner has no effect.
	seen := other.told(m.pv, "ImageNotOwned", 1, from)
	other.handOver(m.pv, string(uuid.NewUUID()))
	other.told(m.pv, "ImageNotOwned", seen+1, from)
	if of := f.marks(image)[ownCluster]; of != from {
		f.Errorf("the image is that of %q, want %q", of, from)
	}

	other.handOver(m.pv, from)
	other.told(m.pv, "ImageTakenOver", 1, from)
	f.eventually(func(ctx context.Context) error {
		live, err := other.kube.Client.CoreV1().PersistentVolumes().Get(ctx, m.pv.Name, metav1.GetOptions{})
		if err == nil && (live.Annotations[ownCluster] != to || live.Annotations[formerCluster] != "") {
			err = fmt.Errorf("volume %s has the annotations %v, want the image to be that of %s", live.Name, live.Annotations, to)
		}
		return err
	})
	want := map[string]string{
		ownCluster:                                to,
		"rbdProvisionerIdentity":                  "ceph.com/rbd",
		"kubernetes.io/created-for/pv/name":       m.pv.Name,
		"kubernetes.io/created-for/pvc/name":      m.restored.Name,
		"kubernetes.io/created-for/pvc/namespace": m.restored.Namespace,
	}
	if diff := cmp.Diff(want, f.marks(image)); diff != "" {
		f.Errorf("metadata of the image (-want +got):\n%s", diff)
	}
	other.ask(m.restored)
	other.grown(m.pv)
	now := survivor{image: image, state: f.state(image), pv: m.pv}

	f.delete(m.claim)
	f.told(m.original.pv, "VolumeFailedDelete", 2, to)
	f.released(m.original.pv)
	f.giveUp(m.original.pv)
	other.survived(now)

	other.delete(m.restored)
	other.gone(m.pv)
	other.purged(m.pv)
}
