// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/cluster"
)

// growing is a class that lets claims ask for more.
func growing(c *storagev1.StorageClass) { c.AllowVolumeExpansion = ptr.To(true) }

func block(c *corev1.PersistentVolumeClaim) {
	c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
}

// ask raises what a claim requests.
func (f *fixture) ask(claim *corev1.PersistentVolumeClaim, size string) {
	f.Helper()
	f.must(f.tryAsk(claim, size))
}

func (f *fixture) tryAsk(claim *corev1.PersistentVolumeClaim, size string) error {
	f.Helper()
	patch := fmt.Sprintf(`{"spec":{"resources":{"requests":{"storage":%q}}}}`, size)
	_, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(f.Context(), claim.Name,
		types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// grown waits until a claim's volume and image have a size and the claim shows it: a
// claim of mode Block has the size, another one waits for its file system to grow.
func (f *fixture) grown(claim *corev1.PersistentVolumeClaim, size string) {
	f.Helper()
	want := resource.MustParse(size)
	var pv *corev1.PersistentVolume
	f.eventually(func(ctx context.Context) error {
		live, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		pv, err = rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, live.Spec.VolumeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		has, told := pv.Spec.Capacity.Storage(), live.Status.Capacity.Storage()
		if has.Cmp(want) != 0 {
			return fmt.Errorf("volume %s has %s; %s", pv.Name, has, f.events(ctx, live.UID))
		}
		var done bool
		if *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock {
			// The first to tell the claim decides about the size: kube-controller-manager
			// up to Kubernetes 1.30 writes what was asked for, we write what the volume
			// has.
			done = told.Cmp(*live.Spec.Resources.Requests.Storage()) >= 0 && len(live.Status.Conditions) == 0
		} else {
			done = condition(live, corev1.PersistentVolumeClaimFileSystemResizePending)
		}
		if !done {
			return fmt.Errorf("the claim has %s and %+v; %s", told, live.Status.Conditions, f.events(ctx, live.UID))
		}
		return nil
	})
	_, image := cluster.ImageOf(pv)
	if got := f.image(f.name, image).Size; got != want.Value() {
		f.Errorf("the image has %d bytes, want %d", got, want.Value())
	}
}

func condition(claim *corev1.PersistentVolumeClaim, kind corev1.PersistentVolumeClaimConditionType) bool {
	for _, c := range claim.Status.Conditions {
		if c.Type == kind && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// kubelet changes a claim as kubelet does once it has grown the file system.
func (f *fixture) kubelet(claim *corev1.PersistentVolumeClaim, size string) {
	f.Helper()
	patch := fmt.Sprintf(`{"status":{"capacity":{"storage":%q},"conditions":[],"allocatedResourceStatuses":null}}`, size)
	_, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(f.Context(), claim.Name,
		types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	f.must(err)
}

// A claim gets the size that it asks for, more than once, and while a client uses the
// image: the image and the volume grow, and the claim says that the file system must
// grow. For a volume of mode Block, that is all.
func TestExpand(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", growing)
	t.Run("a file system", func(t *testing.T) {
		f := f.in(t)
		claim := f.claim("data", class, nil)
		pv := f.bound(claim)
		_, unwatch := f.watch(pv.Spec.RBD.RBDImage)
		f.ask(claim, "3G")
		f.grown(claim, "2862Mi") // 3 GB, rounded up to a MiB
		unwatch()
		f.kubelet(claim, "2862Mi")
		f.ask(claim, "5Gi")
		f.grown(claim, "5Gi")
	})
	t.Run("a device", func(t *testing.T) {
		f := f.in(t)
		claim := f.claim("raw", class, block)
		f.bound(claim)
		for _, size := range []string{"2Gi", "4Gi"} {
			f.ask(claim, size)
			f.grown(claim, size)
		}
	})
}

// A request that asks for no more changes nothing: the same size, a smaller one, and a
// class that does not allow expansion. The API server refuses the last two.
func TestExpandNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", growing), block)
	pv := f.bound(claim)
	fixed := f.claim("fixed", f.class("fixed", nil), block)
	f.bound(fixed)
	f.ask(claim, "1024Mi")
	for _, refused := range []struct {
		claim      *corev1.PersistentVolumeClaim
		size, want string
	}{
		{claim, "512Mi", "less than"},
		{fixed, "2Gi", "must support resize"},
	} {
		if err := f.tryAsk(refused.claim, refused.size); err == nil || !strings.Contains(err.Error(), refused.want) {
			t.Errorf("claim %s asked for %s: got %v, want %q", refused.claim.Name, refused.size, err, refused.want)
		}
	}
	// Once a later claim has grown, the others were passed over.
	later := f.claim("later", f.class("later", growing), block)
	f.bound(later)
	f.ask(later, "2Gi")
	f.grown(later, "2Gi")
	for _, c := range []*corev1.PersistentVolumeClaim{claim, fixed} {
		if events := f.events(t.Context(), c.UID); strings.Contains(events, "esiz") {
			t.Errorf("claim %s: %s", c.Name, events)
		}
	}
	_, image := cluster.ImageOf(pv)
	if got := f.image(f.name, image).Size; got != 1<<30 {
		t.Errorf("the image has %d bytes", got)
	}
}

// Obstacles to growth: the image stays as it is, an event says why, and once the obstacle
// is gone, the volume grows without help.
func TestObstaclesToExpansion(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		put  func(f *fixture, image string)
		want string // NAME is the fixture's, IMAGE the image's
		take func(f *fixture, image string)
		// claims says that new claims get the same event: they show that an earlier read
		// of a secret does not serve any more.
		claims bool
	}{
		{
			"the image was renamed",
			func(f *fixture, image string) { f.rbd("rename", image, "aside") },
			`describe image "IMAGE" in pool "NAME": image does not exist: bring it back under its name, or delete the claim`,
			func(f *fixture, image string) { f.rbd("rename", "aside", image) },
			false,
		},
		{
			"the image is another volume's",
			func(f *fixture, image string) {
				f.rbd("image-meta", "set", image, "kubernetes.io/created-for/pv/name", "pvc-other")
			},
			`image "IMAGE" in pool "NAME" is not this volume's: its metadata kubernetes.io/created-for/pv/name is "pvc-other": it is left alone`,
			func(f *fixture, image string) {
				f.rbd("image-meta", "remove", image, "kubernetes.io/created-for/pv/name")
			},
			false,
		},
		{
			"the image is another cluster's",
			func(f *fixture, image string) { f.mark(image, anotherCluster) },
			`image "IMAGE" in pool "NAME" belongs to another Kubernetes cluster, whose namespace kube-system has the UID "` + anotherCluster + `"`,
			func(f *fixture, image string) { f.mark(image, f.clusterUID()) },
			false,
		},
		{
			"the secret holds another user's key",
			func(f *fixture, _ string) { f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.userKey) },
			`permission denied: check that the user exists, that secret "kube-system/NAME-admin" holds its key, and that its caps have mon 'profile rbd'`,
			func(f *fixture, _ string) { f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey) },
			true,
		},
		{
			"the secret is gone",
			func(f *fixture, _ string) {
				f.must(rig.Kube.Client.CoreV1().Secrets(namespace).Delete(f.Context(), f.name+"-admin", metav1.DeleteOptions{}))
			},
			`secret "kube-system/NAME-admin"`,
			func(f *fixture, _ string) { f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey) },
			true,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			class := f.class("a", growing)
			claim := f.claim("data", class, block)
			image := f.bound(claim).Spec.RBD.RBDImage
			test.put(f, image)
			if test.claims {
				f.claimRefused(class, f.named(test.want))
			}
			f.ask(claim, "2Gi")
			f.event(claim, `by resizer "ceph.com/rbd" failed: `)
			f.event(claim, strings.ReplaceAll(f.named(test.want), "IMAGE", image))
			test.take(f, image)
			f.grown(claim, "2Gi")
		})
	}
}

// Growing an image takes no room: a pool that is full, by its quota, does not prevent it.
func TestExpandInFullPool(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", growing), block)
	f.bound(claim)
	f.fill()
	f.ask(claim, "2Gi")
	f.grown(claim, "2Gi")
	f.quota("0")
}

// An image that is larger than its volume, after a crash or by hand, stays as it is, and
// the volume gets its size.
func TestExpandToLargerImage(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", growing), block)
	pv := f.bound(claim)
	f.rbd("resize", "--no-progress", "--size=5G", pv.Spec.RBD.RBDImage)
	f.ask(claim, "2Gi")
	f.grown(claim, "5Gi")
}

// A provisioner is killed after it grew an image and could not save that in the volume.
// The next one completes the growth.
func TestExpandAfterCrash(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	all := installed(t)
	saving := all[slices.IndexFunc(all, func(r right) bool { return r.String() == "patch persistentvolumes" })]
	r := newRestricted(t, f, "crash", all, saving, nil, []string{"-leader-election=false"})
	r.allowExpansion(r.class)
	claim := r.claim("data", r.class, block)
	pv := r.bound(claim)
	r.ask(claim, "2Gi")
	r.event(claim, `cannot patch resource "persistentvolumes"`)
	_, image := cluster.ImageOf(pv)
	if got := f.image(f.name, image).Size; got != 2<<30 {
		t.Errorf("the image has %d bytes", got)
	}
	r.process.Kill()
	r.grant(r.ns, r.named(all), r.named(all))
	r.must(r.process.Start(t.Context()))
	r.grown(claim, "2Gi")
	r.delete(claim)
	r.gone(pv)
}

// allowExpansion lets claims of an existing class ask for more.
func (f *fixture) allowExpansion(class *storagev1.StorageClass) {
	f.Helper()
	_, err := rig.Kube.Client.StorageV1().StorageClasses().Patch(f.Context(), class.Name,
		types.MergePatchType, []byte(`{"allowVolumeExpansion":true}`), metav1.PatchOptions{})
	f.must(err)
}

// What claims ask for while no provisioner runs, the next one does. It needs no class. A
// provisioner that is stopped in the middle leaves nothing half done.
func TestExpandAcrossRestarts(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	name := "example.com/" + f.name
	p := start(t, []string{"PROVISIONER_NAME=" + name}, "-leader-election=false")
	class := f.class("a", func(c *storagev1.StorageClass) {
		growing(c)
		c.Provisioner = name
	})
	claims := make([]*corev1.PersistentVolumeClaim, 10)
	for i := range claims {
		claims[i] = f.claim(fmt.Sprint("data-", i), class, block)
	}
	var volumes []*corev1.PersistentVolume
	for _, claim := range claims {
		volumes = append(volumes, f.bound(claim))
	}
	for _, claim := range claims {
		f.ask(claim, "2Gi")
	}
	f.must(p.Stop()) // status 0
	for _, claim := range claims {
		f.ask(claim, "3Gi")
	}
	f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(t.Context(), class.Name, metav1.DeleteOptions{}))
	f.must(p.Start(t.Context()))
	for _, claim := range claims {
		f.grown(claim, "3Gi")
		f.delete(claim)
	}
	for _, pv := range volumes {
		f.gone(pv) // before this provisioner ends
	}
	metrics, err := get(t.Context(), p.URL+"/metrics")
	f.must(err)
	if !strings.Contains(metrics, `rbd_provisioner_expansions_total{result="failure"} 0`) {
		t.Error("attempts failed")
	}
	if !strings.Contains(metrics, `rbd_provisioner_ceph_call_duration_seconds_count{call="GrowImage",result="success"} `) {
		t.Error("the metrics do not show how long images took to grow")
	}
}

// Volumes that the retired provisioner made grow through their class and, once that is
// gone, as their annotations say.
func TestExpandVolumesOfTheRetiredProvisioner(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("old", growing)
	claim := f.retiredVolume(class, "data")
	pv := f.bound(claim)
	f.ask(claim, "2Gi")
	f.grown(claim, "2Gi")
	f.kubelet(claim, "2Gi")

	f.rbd("rename", pv.Spec.RBD.RBDImage, "aside") // so that the class goes first
	f.ask(claim, "3Gi")
	f.event(claim, "image does not exist")
	f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(t.Context(), class.Name, metav1.DeleteOptions{}))
	f.rbd("rename", "aside", pv.Spec.RBD.RBDImage)
	f.event(claim, fmt.Sprintf("the volume does not say who deletes its image, and its StorageClass %q is gone", class.Name))
	f.annotate(pv, map[string]string{
		"rbd.ceph.com/provisioner-deletion-user":                     f.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-name":      f.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-namespace": namespace,
	})
	f.grown(claim, "3Gi")
}

// None of the volume's monitors answers any more, and none of its class's. An event says
// so until the class has others that belong to the same cluster.
func TestExpandAfterOutage(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", func(c *storagev1.StorageClass) {
		growing(c)
		c.Parameters["monitors"] = "127.0.0.1:1"
	})
	f.rbd("create", "--size=1G", "--image-feature=layering", "moved")
	pv := f.static(f.name+"-moved", class.Name, corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
		CephMonitors: []string{"127.0.0.1:1"}, RBDPool: f.name, RBDImage: "moved",
	}}, map[string]string{
		"pv.kubernetes.io/provisioned-by": "ceph.com/rbd",
		"rbdProvisionerIdentity":          "ceph.com/rbd",
		"rbd.ceph.com/cluster-fsid":       rig.Ceph.FSID,
	}, "data")
	claim := f.claim("data", class, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = pv.Name })
	f.bound(claim)
	f.ask(claim, "2Gi")
	f.event(claim, `no monitor answered`) // of its own attempt, or of one that the loops make
	f.must(rig.Kube.Client.StorageV1().StorageClasses().Delete(t.Context(), class.Name, metav1.DeleteOptions{}))
	f.class("a", growing) // parameters can't be changed
	f.grown(claim, "2Gi")
	f.delete(claim)
	f.gone(pv) // before the class
}
