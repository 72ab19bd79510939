// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"
)

// A volume has all that kubelet and the deletion need. Its image is what the claim asked
// for, and both are deleted with the claim. The Ceph users have minimal caps.
func TestVolume(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("fast", func(c *storagev1.StorageClass) {
		c.Parameters["fsType"] = "xfs"
		c.MountOptions = []string{"noatime"}
	})
	claim := f.claim("data", class, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("1G")
	})
	pv := f.bound(claim)

	imageName := "kubernetes-dynamic-pvc-" + string(claim.UID)
	source := &corev1.RBDPersistentVolumeSource{
		CephMonitors: []string{rig.Ceph.MonitorV1},
		RBDPool:      f.name,
		RBDImage:     imageName,
		RadosUser:    f.name + "-user",
		SecretRef:    &corev1.SecretReference{Name: "user"},
		FSType:       "xfs",
		Keyring:      "/etc/ceph/keyring", // set by the API server
	}
	if diff := cmp.Diff(source, pv.Spec.RBD); diff != "" {
		t.Errorf("source (-want +got):\n%s", diff)
	}
	annotations := map[string]string{
		"pv.kubernetes.io/provisioned-by":                            "ceph.com/rbd",
		"rbdProvisionerIdentity":                                     "ceph.com/rbd",
		"rbd.ceph.com/cluster-fsid":                                  rig.Ceph.FSID,
		kubernetesCluster:                                            f.clusterUID(),
		"rbd.ceph.com/provisioner-deletion-user":                     f.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-name":      f.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-namespace": namespace,
	}
	for key, want := range annotations {
		if got := pv.Annotations[key]; got != want {
			t.Errorf("annotation %s: got %q, want %q", key, got, want)
		}
	}
	const size = 954 << 20 // 1 GB, rounded up to a MiB
	if got := pv.Spec.Capacity.Storage().Value(); got != size {
		t.Errorf("capacity: got %d, want %d", got, size)
	}
	if diff := cmp.Diff([]string{"noatime"}, pv.Spec.MountOptions); diff != "" {
		t.Errorf("mount options (-want +got):\n%s", diff)
	}
	if pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete || *pv.Spec.VolumeMode != corev1.PersistentVolumeFilesystem {
		t.Errorf("got policy %s, mode %s", pv.Spec.PersistentVolumeReclaimPolicy, *pv.Spec.VolumeMode)
	}
	if diff := cmp.Diff([]string{"external-provisioner.volume.kubernetes.io/finalizer"}, withoutProtection(pv.Finalizers)); diff != "" {
		t.Errorf("finalizers (-want +got):\n%s", diff)
	}

	if diff := cmp.Diff(image{Size: size, Features: []string{"layering"}}, f.image(f.name, imageName)); diff != "" {
		t.Errorf("image (-want +got):\n%s", diff)
	}
	owner := map[string]string{
		"kubernetes.io/created-for/pvc/name":      "data",
		"kubernetes.io/created-for/pvc/namespace": f.name,
		"kubernetes.io/created-for/pv/name":       pv.Name,
		"rbdProvisionerIdentity":                  "ceph.com/rbd",
		kubernetesCluster:                         f.clusterUID(),
	}
	if diff := cmp.Diff(owner, f.metadata(imageName)); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}

	f.delete(claim)
	f.gone(pv)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
}

func withoutProtection(finalizers []string) []string {
	var rest []string
	for _, name := range finalizers {
		if name != "kubernetes.io/pv-protection" {
			rest = append(rest, name)
		}
	}
	return rest
}

func TestBlockVolume(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("block", func(c *storagev1.StorageClass) { c.Parameters["fsType"] = "xfs" })
	pv := f.bound(f.claim("raw", class, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
	}))
	if *pv.Spec.VolumeMode != corev1.PersistentVolumeBlock || pv.Spec.RBD.FSType != "" {
		t.Errorf("got mode %s, file system %q", *pv.Spec.VolumeMode, pv.Spec.RBD.FSType)
	}
}

func TestReadOnlyManyVolume(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	both := []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany, corev1.ReadWriteOnce}
	pv := f.bound(f.claim("data", f.class("a", nil), func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = both }))
	if diff := cmp.Diff(both, pv.Spec.AccessModes); diff != "" {
		t.Errorf("access modes (-want +got):\n%s", diff)
	}
}

func TestMonitors(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, port, _ := strings.Cut(rig.Ceph.MonitorV1, ":")
	for _, test := range []struct {
		name     string
		monitors string
		want     []string
		event    string
	}{
		{
			"v2 for librados alone", "v2:" + rig.Ceph.MonitorV2 + " v1:" + rig.Ceph.MonitorV1,
			[]string{rig.Ceph.MonitorV1}, "",
		},
		{
			"a dead one beside a live one", "127.0.0.1:1," + rig.Ceph.MonitorV1,
			[]string{"127.0.0.1:1", rig.Ceph.MonitorV1}, "",
		},
		{
			"a name, in the hosts file of every machine", "v1:localhost:" + port,
			nil, "", // checked below: 127.0.0.1, and ::1 where the machine has it
		},
		{
			"a name that does not resolve beside an address", "nowhere.invalid:6789;" + rig.Ceph.MonitorV1,
			[]string{rig.Ceph.MonitorV1}, `monitor "nowhere.invalid"`,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			suffix := fmt.Sprintf("mon-%d", len(test.monitors))
			class := f.class(suffix, func(c *storagev1.StorageClass) { c.Parameters["monitors"] = test.monitors })
			claim := f.claim(suffix, class, nil)
			pv := f.bound(claim)
			got := pv.Spec.RBD.CephMonitors
			if test.want == nil {
				if !strings.Contains(strings.Join(got, " "), rig.Ceph.MonitorV1) {
					t.Errorf("got %v, want %s among them", got, rig.Ceph.MonitorV1)
				}
			} else if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("monitors (-want +got):\n%s", diff)
			}
			if test.event != "" {
				f.event(claim, test.event)
			}
		})
	}
}

func TestBurst(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	claims := make([]*corev1.PersistentVolumeClaim, 20)
	for i := range claims {
		claims[i] = f.claim(fmt.Sprintf("data-%d", i), class, nil)
	}
	for _, claim := range claims {
		f.bound(claim)
	}
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
	volumes, err := f.volumes(t.Context(), f.name)
	f.must(err)
	if len(volumes) != len(claims) {
		t.Errorf("got %d volumes, want %d", len(volumes), len(claims))
	}
	for _, claim := range claims {
		f.delete(claim)
	}
	f.eventually(func(ctx context.Context) error {
		volumes, err := f.volumes(ctx, f.name)
		if err == nil && len(volumes) > 0 {
			err = fmt.Errorf("%d volumes are left", len(volumes))
		}
		return err
	})
}
