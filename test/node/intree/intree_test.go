// SPDX-License-Identifier: Apache-2.0

// Package intree tests in-tree volumes, which kubelet up to 1.30 mounts by itself, and
// those of the node plugin beside them. What does not depend on who mounts is tested in
// test/node.
package intree

import (
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/node/fixture"
)

// root is the root folder of the repository.
const root = "../../.."

// suite is shared by all tests, and set before the first one runs.
var suite *fixture.Suite

func TestMain(m *testing.M) {
	os.Exit(fixture.Run(m, root, func(s *fixture.Suite) { suite = s }))
}

func TestCloneBesideItsSource(t *testing.T) { suite.CloneBesideItsSource(t) }

func TestFileSystemGrowsUnderAPod(t *testing.T) { suite.GrowsUnderAPod(t) }

func TestMistakes(t *testing.T) {
	suite.Mistakes(t, []fixture.Mistake{
		{
			Name: "a secret with two entries", On: "data", Want: "must hold exactly one entry",
			// Where the provisioner may read it.
			Change: func(class *storagev1.StorageClass) {
				class.Parameters["userSecretNamespace"] = fixture.Namespace
			},
			Secret: map[string][]byte{"another": []byte("AAAA")},
		},
		{
			Name: "monitors with v2 addresses only", On: "data", Want: "none speaks message protocol 1",
			Change: func(class *storagev1.StorageClass) {
				class.Parameters["monitors"] = "v2:" + suite.Rig.Ceph.MonitorV2
			},
		},
		{
			Name: "the key of somebody else", On: "pod", Want: "fail to check rbd image status",
			Secret: map[string][]byte{"key": []byte(fixture.ForeignKey)},
		},
	})
}

// TestBothSources: a Pod has an in-tree volume and one of the node plugin, and the next
// Pod reads both. A class that does not say which gets in-tree ones, with the node plugin
// installed, too.
func TestBothSources(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fsType  string
		options []string
		// mounted is what the kernel says about mount options.
		mounted string
	}{
		{"ext4", []string{"noatime", "commit=31"}, "rw,noatime,commit=31"},
		{"xfs", []string{"noatime", "allocsize=128k"}, "rw,noatime,attr2,inode64,allocsize=128k"},
	} {
		if !fixture.Tested(test.fsType, "ext4") {
			continue
		}
		t.Run(test.fsType, func(t *testing.T) {
			t.Parallel()
			f := suite.New(t, func(class *storagev1.StorageClass) {
				class.Parameters["fsType"] = test.fsType
				class.MountOptions = test.options
			})
			classes := suite.Rig.Kube.Client.StorageV1().StorageClasses()
			class, err := classes.Get(t.Context(), f.Name, metav1.GetOptions{})
			f.Must(err)
			class.ObjectMeta = metav1.ObjectMeta{Name: f.Name + "-csi"}
			class.Parameters["volumeSource"] = "csi"
			_, err = classes.Create(t.Context(), class, metav1.CreateOptions{})
			f.Must(err)
			volume := f.Claim("data", nil)
			if volume.Spec.RBD == nil {
				t.Errorf("the volume of a class that does not say has the source %v", volume.Spec.PersistentVolumeSource)
			}
			volume = f.Claim("more", func(claim *corev1.PersistentVolumeClaim) {
				claim.Spec.StorageClassName = ptr.To(class.Name)
			})
			if volume.Spec.CSI == nil {
				t.Errorf("the volume of a class with volumeSource csi has the source %v", volume.Spec.PersistentVolumeSource)
			}

			run := func(name, script string) string {
				pod := f.NewPodWith(name, "data", script, fixture.Filesystem)
				pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "more", VolumeSource: corev1.VolumeSource{
					PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "more"},
				}})
				container := &pod.Spec.Containers[0]
				container.VolumeMounts = append(container.VolumeMounts, corev1.VolumeMount{Name: "more", MountPath: "/more"})
				return f.RunToEnd(pod)
			}
			mounts := run("writer", "echo in-tree >/data/file; echo plugin >/more/file; cat /proc/mounts")
			for _, folder := range []string{"/data", "/more"} {
				if want := " " + folder + " " + test.fsType + " " + test.mounted; !strings.Contains(mounts, want) {
					t.Errorf("no mount is %q:\n%s", want, mounts)
				}
			}
			if got, want := run("reader", "cat /data/file /more/file"), "in-tree\nplugin\n"; got != want {
				t.Errorf("read %q, want %q", got, want)
			}
			f.Must(classes.Delete(t.Context(), class.Name, metav1.DeleteOptions{}))
		})
	}
}

func TestBlockVolumeHoldsWhatAPodHasWritten(t *testing.T) {
	t.Parallel()
	f := suite.New(t, nil)
	volume := f.Claim("data", func(claim *corev1.PersistentVolumeClaim) {
		claim.Spec.VolumeMode = ptr.To(fixture.Block)
	})
	const text = "straight onto the device"
	f.RunPod("writer", "data", "printf '"+text+"' | dd of=/dev/data bs=1M seek=5 conv=fsync", fixture.Block)

	f.Holds(volume, 5<<20, text)
}
