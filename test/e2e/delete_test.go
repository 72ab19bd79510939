// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func TestRetain(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	retain := corev1.PersistentVolumeReclaimRetain
	class := f.class("retain", func(c *storagev1.StorageClass) { c.ReclaimPolicy = &retain })
	claim := f.claim("data", class, nil)
	pv := f.bound(claim)
	f.delete(claim)
	f.phase(pv, corev1.VolumeReleased)

	// The administrator removes the volume: the image stays.
	f.must(rig.Kube.Client.CoreV1().PersistentVolumes().Delete(t.Context(), pv.Name, metav1.DeleteOptions{}))
	f.gone(pv)
	images, err := rig.Ceph.Images(t.Context(), f.name)
	f.must(err)
	if !slices.Equal(images, []string{pv.Spec.RBD.RBDImage}) {
		t.Errorf("got images %v, want %s", images, pv.Spec.RBD.RBDImage)
	}
	f.rbd("rm", pv.Spec.RBD.RBDImage)
}

// A deletion needs neither the class nor its parameters.
func TestClassDeletedBeforeItsVolumes(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("short-lived", nil)
	claim := f.claim("data", class, nil)
	pv := f.bound(claim)
	f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(t.Context(), class.Name, metav1.DeleteOptions{}))
	f.delete(claim)
	f.gone(pv)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
}

// The finalizer keeps a volume that is deleted by hand until its image is gone.
func TestVolumeDeletedBeforeItsClaim(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	f.must(rig.Kube.Client.CoreV1().PersistentVolumes().Delete(t.Context(), pv.Name, metav1.DeleteOptions{}))
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
	f.delete(claim)
	f.gone(pv)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
}

func TestImageDeletedByHand(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	f.rbd("rm", pv.Spec.RBD.RBDImage)
	f.delete(claim)
	f.gone(pv)
}

// deletedInUse deletes a claim while a client at the address has the image of its volume open.
func (f *fixture) deletedInUse() (pv *corev1.PersistentVolume, address string, unwatch func()) {
	f.Helper()
	claim := f.claim("data", f.class("a", nil), nil)
	pv = f.bound(claim)
	address, unwatch = f.watch(pv.Spec.RBD.RBDImage)
	f.delete(claim)
	return pv, address, unwatch
}

// A client that lets the image go within half a minute, as kubelet does after a Pod, is
// waited for without a word.
func TestImageLetGo(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	pv, address, unwatch := f.deletedInUse()
	f.eventually(func(context.Context) error {
		if !strings.Contains(log(t, rig.main), "image is in use by "+address) {
			return fmt.Errorf("no attempt to delete volume %s met its client", pv.Name)
		}
		return nil
	})
	unwatch()
	f.gone(pv)
	if events := f.events(t.Context(), pv.UID); strings.Contains(events, "in use") {
		t.Errorf("somebody was warned: %s", events)
	}
	for line := range strings.Lines(log(t, rig.main)) {
		if strings.HasPrefix(line, "E") && strings.Contains(line, pv.Name) {
			t.Errorf("the log says at error level: %s", line)
		}
	}
}

// An image that a client has open stays as it is, and the event names the client.
func TestWatchedImage(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	pv, address, unwatch := f.deletedInUse()
	f.event(pv, fmt.Sprintf("image %q in pool %q: image is in use by %s: it will be removed once no client has it open or mapped",
		pv.Spec.RBD.RBDImage, f.name, address))
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
	unwatch()
	f.gone(pv)
}

func TestImageWithSnapshot(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	f.rbd("snap", "create", pv.Spec.RBD.RBDImage+"@keep")
	f.delete(claim)
	f.event(pv, "image has snapshots: keep: it will be removed once they are gone")
	f.rbd("snap", "rm", pv.Spec.RBD.RBDImage+"@keep")
	f.gone(pv)
}

// An image whose metadata names another volume stays, whatever a volume says.
func TestForeignImage(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	f.rbd("image-meta", "set", pv.Spec.RBD.RBDImage, "kubernetes.io/created-for/pv/name", "pvc-other")
	f.delete(claim)
	f.event(pv, `is not this volume's: its metadata kubernetes.io/created-for/pv/name is "pvc-other": it is left alone`)
	f.rbd("image-meta", "set", pv.Spec.RBD.RBDImage, "kubernetes.io/created-for/pv/name", pv.Name)
	f.gone(pv)
}

// Volumes that the retired provisioner made say only which provisioner made them. They
// are deleted through their class and, once that is gone, as their annotations say.
func TestVolumesOfTheRetiredProvisioner(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("old", func(c *storagev1.StorageClass) { c.Parameters["imageFormat"] = "1" }) // no fault of the volume's
	claims := []*corev1.PersistentVolumeClaim{f.retiredVolume(class, "first"), f.retiredVolume(class, "second")}
	first, second := f.bound(claims[0]), f.bound(claims[1])
	f.delete(claims[0])
	f.gone(first)

	f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(t.Context(), class.Name, metav1.DeleteOptions{}))
	f.delete(claims[1])
	f.event(second, fmt.Sprintf("the volume does not say who deletes its image, and its StorageClass %q is gone", class.Name))
	f.annotate(second, map[string]string{
		"rbd.ceph.com/provisioner-deletion-user":                     f.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-name":      f.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-namespace": namespace,
	})
	f.gone(second)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
}

// retiredVolume makes an image, a claim and a volume that are bound to each other, as the
// retired provisioner left them.
func (f *fixture) retiredVolume(class *storagev1.StorageClass, name string) *corev1.PersistentVolumeClaim {
	f.Helper()
	f.rbd("create", "--size=1G", "--image-feature=layering", "kubernetes-dynamic-pvc-"+name)
	pv := f.static(f.name+"-"+name, class.Name, corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
		CephMonitors: []string{rig.Ceph.MonitorV1}, RBDPool: f.name, RBDImage: "kubernetes-dynamic-pvc-" + name,
		RadosUser: f.name + "-user", SecretRef: &corev1.SecretReference{Name: "user"},
	}}, map[string]string{
		"pv.kubernetes.io/provisioned-by": "ceph.com/rbd",
		"rbdProvisionerIdentity":          "ceph.com/rbd",
	}, name)
	return f.claim(name, class, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = pv.Name })
}

// static makes a volume by hand, for a claim of the test's namespace.
func (f *fixture) static(name, class string, source corev1.PersistentVolumeSource, annotations map[string]string, claim string) *corev1.PersistentVolume {
	f.Helper()
	pv, err := rig.Kube.Client.CoreV1().PersistentVolumes().Create(f.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName:              class,
			PersistentVolumeSource:        source,
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:                      &corev1.ObjectReference{Namespace: f.name, Name: claim},
		},
	}, metav1.CreateOptions{})
	f.must(err)
	return pv
}

// The monitors moved: the volume's do not answer any more, and the volume can't be
// changed. The class's monitors are used if they belong to the same cluster.
func TestMovedMonitors(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", func(c *storagev1.StorageClass) {
		c.Parameters["monitors"] = rig.Ceph.MonitorV1 + " v2:" + rig.Ceph.MonitorV2
	})
	annotations := map[string]string{
		"pv.kubernetes.io/provisioned-by":                            "ceph.com/rbd",
		"rbdProvisionerIdentity":                                     "ceph.com/rbd",
		"rbd.ceph.com/provisioner-deletion-user":                     f.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-name":      f.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-namespace": namespace,
	}
	f.rbd("create", "--size=1G", "--image-feature=layering", "moved")
	pv := f.static(f.name+"-moved", class.Name, corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
		CephMonitors: []string{"127.0.0.1:1"}, RBDPool: f.name, RBDImage: "moved",
	}}, annotations, "data")
	claim := f.claim("data", class, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = pv.Name })
	f.bound(claim)
	f.delete(claim)

	f.event(pv, "it does not say which Ceph cluster it is in")
	f.annotate(pv, map[string]string{"rbd.ceph.com/cluster-fsid": "00000000-0000-4000-8000-000000000000"})
	f.event(pv, fmt.Sprintf("the monitors belong to another Ceph cluster: they are of %q, "+
		`the volume is in "00000000-0000-4000-8000-000000000000": name the right monitors in its StorageClass`, rig.Ceph.FSID))
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
	f.annotate(pv, map[string]string{"rbd.ceph.com/cluster-fsid": rig.Ceph.FSID})
	f.gone(pv)
}

// Volumes of others are never touched: static volumes of any kind, and claims and volumes
// of other provisioners.
func TestOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.rbd("create", "--size=1G", "--image-feature=layering", "by-hand")
	f.rbd("create", "--size=1G", "--image-feature=layering", "of-another")
	f.rbd("create", "--size=1G", "--image-feature=layering", "of-another-identity")
	handmade := func(image string) corev1.PersistentVolumeSource {
		return corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
			CephMonitors: []string{rig.Ceph.MonitorV1}, RBDPool: f.name, RBDImage: image,
		}}
	}
	var volumes []*corev1.PersistentVolume
	var claims []*corev1.PersistentVolumeClaim
	for name, v := range map[string]struct {
		source      corev1.PersistentVolumeSource
		annotations map[string]string
	}{
		"nfs":       {corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "192.0.2.1", Path: "/"}}, nil},
		"glusterfs": {corev1.PersistentVolumeSource{Glusterfs: &corev1.GlusterfsPersistentVolumeSource{EndpointsName: "g", Path: "v"}}, nil},
		"by-hand":   {handmade("by-hand"), nil},
		"of-another": {handmade("of-another"), map[string]string{
			"pv.kubernetes.io/provisioned-by": "example.com/other", "rbdProvisionerIdentity": "ceph.com/rbd",
		}},
		"of-another-identity": {handmade("of-another-identity"), map[string]string{
			"pv.kubernetes.io/provisioned-by": "ceph.com/rbd", "rbdProvisionerIdentity": "somebody-else",
		}},
	} {
		class := f.name + "-static"
		pv := f.static(f.name+"-"+name, class, v.source, v.annotations, name)
		claims = append(claims, f.claim(name, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}},
			func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = pv.Name }))
		volumes = append(volumes, pv)
	}
	// One after the other, each would wait for a turn of the controller manager.
	for _, claim := range claims {
		f.bound(claim)
	}
	for i, claim := range claims {
		f.delete(claim)
		f.released(volumes[i])
	}
	// Claims of a class of another provisioner.
	other := f.class("other", func(c *storagev1.StorageClass) { c.Provisioner = "example.com/other" })
	waiting := f.claim("waiting", other, nil)
	f.event(waiting, "external provisioner 'example.com/other'")

	// Once a later claim of ours has come and gone, the provisioner has seen the others
	// and passed them over.
	ours := f.claim("ours", f.class("ours", nil), nil)
	pv := f.bound(ours)
	f.delete(ours)
	f.gone(pv)
	f.pending(waiting)

	images, err := rig.Ceph.Images(t.Context(), f.name)
	f.must(err)
	if diff := cmp.Diff([]string{"by-hand", "of-another", "of-another-identity"}, images); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
	for _, pv := range volumes {
		live, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(t.Context(), pv.Name, metav1.GetOptions{})
		f.must(err)
		if live.DeletionTimestamp != nil {
			t.Errorf("volume %s is being deleted", pv.Name)
		}
		if rest := withoutProtection(live.Finalizers); len(rest) > 0 {
			t.Errorf("volume %s has finalizers %v, which nobody takes off again", pv.Name, rest)
		}
		if events := f.events(t.Context(), pv.UID); strings.Contains(events, "(ceph.com/rbd") {
			t.Errorf("volume %s: %s", pv.Name, events)
		}
		patch := []byte(`{"metadata":{"finalizers":null},"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
		_, err = rig.Kube.Client.CoreV1().PersistentVolumes().Patch(t.Context(), pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		f.must(err)
		f.must(rig.Kube.Client.CoreV1().PersistentVolumes().Delete(t.Context(), pv.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}))
	}
	for _, image := range images {
		f.rbd("rm", image)
	}
}

// released waits until a volume's claim has given it up. The controller manager can't
// delete these volumes: it sets the phase Failed, or leaves them.
func (f *fixture) released(pv *corev1.PersistentVolume) {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		live, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
		if err == nil && live.Status.Phase != corev1.VolumeReleased && live.Status.Phase != corev1.VolumeFailed {
			err = fmt.Errorf("volume %s is %s", pv.Name, live.Status.Phase)
		}
		return err
	})
}

// phase waits until a volume is in a phase.
func (f *fixture) phase(pv *corev1.PersistentVolume, want corev1.PersistentVolumePhase) {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		live, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
		if err == nil && live.Status.Phase != want {
			err = fmt.Errorf("volume %s is %s, want %s", pv.Name, live.Status.Phase, want)
		}
		return err
	})
}
