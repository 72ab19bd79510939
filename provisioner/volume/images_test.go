// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

func inTree(pool, image string) *corev1.PersistentVolume {
	pv := new(corev1.PersistentVolume)
	pv.Spec.RBD = &corev1.RBDPersistentVolumeSource{CephMonitors: []string{"10.0.0.1"}, RBDPool: pool, RBDImage: image}
	return pv
}

func csi(handle string, attributes map[string]string) *corev1.PersistentVolume {
	pv := new(corev1.PersistentVolume)
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "example.com", VolumeHandle: handle, VolumeAttributes: attributes}
	return pv
}

// A volume names an image if any driver could find the image by what the volume says, also
// after the volume was trimmed for the cache.
func TestImageKeys(t *testing.T) {
	const image = "kubernetes-dynamic-pvc-1234"
	ours := func(pool, image string) *corev1.PersistentVolume {
		pv := new(corev1.PersistentVolume)
		volume.Record{CSI: true, Pool: pool, Image: image, FSID: "fsid", Monitors: []string{"10.0.0.1"}}.Write(pv)
		return pv
	}
	for _, test := range []struct {
		name  string
		pv    *corev1.PersistentVolume
		names bool
	}{
		{"an in-tree source", inTree("kube", image), true},
		{"an in-tree source in another pool", inTree("other", image), false},
		{"an in-tree source of another image", inTree("kube", "other"), false},
		{"our node plugin's", ours("kube", image), true},
		{"our node plugin's, of another pool", ours("other", image), false},
		{"our node plugin's, of another image", ours("kube", "other"), false},
		{"ceph-csi's static form", csi(image, map[string]string{"clusterID": "c", "pool": "kube", "staticVolume": "true"}), true},
		{"ceph-csi's dynamic form", csi("0001-0001-c-1", map[string]string{"clusterID": "c", "pool": "kube", "imageName": image}), true},
		{"a volume that was migrated from in-tree", csi("mig_mons-c_image-1234_6b756265", nil), true},
		{"one that was migrated and has the whole name", csi("mig_mons-c_image-"+image+"_6b756265", nil), true},
		{"one that was migrated, of another pool", csi("mig_mons-c_image-1234_6f74686572", nil), false},
		{"another driver's words", csi("x", map[string]string{"rbdPool": "kube", "rbdImage": image}), true},
		{"a handle that is a path", csi("kube/"+image, nil), true},
		{"another pool", csi(image, map[string]string{"pool": "other"}), false},
		{"another image", csi("other", map[string]string{"pool": "kube", "imageName": "another"}), false},
		{"no pool", csi(image, map[string]string{"imageName": image}), false},
		{"a pool for data only", csi(image, map[string]string{"pool": "other", "dataPool": "erasure"}), false},
		{"a RADOS namespace, where ours are not", csi(image, map[string]string{"pool": "kube", "radosNamespace": "theirs"}), false},
		{"a RADOS namespace that is empty", csi(image, map[string]string{"pool": "kube", "radosNamespace": ""}), true},
		{"another kind of storage", new(corev1.PersistentVolume), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			key := volume.ImageKey("kube", image)
			if got := slices.Contains(volume.ImageKeys(test.pv), key); got != test.names {
				t.Errorf("names the image: got %v, want %v", got, test.names)
			}
			before := volume.ImageKeys(test.pv)
			volume.Trim(test.pv)
			if got := slices.Contains(volume.ImageKeys(test.pv), key); got != test.names {
				t.Errorf("names the image once it is trimmed: got %v, want %v (%q before, %q after)", got, test.names,
					before, volume.ImageKeys(test.pv))
			}
		})
	}
}

// Clusters can only differ if both the volume and the caller name one.
func TestMayBeIn(t *testing.T) {
	for _, test := range []struct {
		says, fsid string
		want       bool
	}{
		{"a", "a", true}, {"", "a", true}, {"a", "", true}, {"", "", true}, {"a", "b", false},
	} {
		pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{volume.AnnClusterFSID: test.says}}}
		if got := volume.MayBeIn(pv, test.fsid); got != test.want {
			t.Errorf("one that says %q, in %q: got %v, want %v", test.says, test.fsid, got, test.want)
		}
	}
}

// FuzzImageKeys checks that ImageKeys finds a migrated volume's image, whatever its
// cluster's ID and its name are, and panics at no handle.
func FuzzImageKeys(f *testing.F) {
	f.Add("c", "1234", "kube", "mig_mons-c_image-")
	f.Add("a_image-b", "1_2", "pool_with_lines", "mig_mons-_")
	f.Add("", "", "", "mig_mons-x_image-y_zz")
	f.Fuzz(func(t *testing.T, cluster, name, pool, handle string) {
		volume.ImageKeys(csi(handle, map[string]string{"pool": pool}))
		if strings.Contains(cluster+name, "_image-") {
			return // nobody can tell where the name begins
		}
		pv := csi("mig_mons-"+cluster+"_image-"+name+"_"+hex.EncodeToString([]byte(pool)), nil)
		want := volume.ImageKey(pool, "kubernetes-dynamic-pvc-"+name)
		if got := volume.ImageKeys(pv); !slices.Contains(got, want) {
			t.Errorf("%q: got %q, want %q in it", pv.Spec.CSI.VolumeHandle, got, want)
		}
	})
}
