// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/node/fixture"
)

// TestPodReadsWhatAnotherHasWritten has, beside the two file systems, the two message
// protocols of Ceph: with the new one, no monitor needs the old one.
func TestPodReadsWhatAnotherHasWritten(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fsType  string
		options []string
		// mounted is what the kernel says about mount options.
		mounted string
		// v2 are monitors with addresses of the new protocol only.
		v2 bool
	}{
		{"ext4", []string{"noatime", "commit=31"}, "rw,noatime,commit=31", false},
		{"xfs", []string{"noatime", "allocsize=128k"}, "rw,noatime", true},
	} {
		t.Run(test.fsType, func(t *testing.T) {
			t.Parallel()
			f := suite.New(t, func(class *storagev1.StorageClass) {
				class.Parameters["fsType"] = test.fsType
				class.MountOptions = test.options
				if test.v2 {
					class.Parameters["monitors"] = "v2:" + suite.Rig.Ceph.MonitorV2
					class.Parameters["mapOptions"] = "ms_mode=prefer-crc"
				}
			})
			begin := time.Now()
			f.Claim("data", nil)
			f.Start(f.NewPodWith("writer", "data", "sleep 3600", fixture.Filesystem))
			f.Running("writer")
			t.Logf("from claim to running Pod: %.1f s", time.Since(begin).Seconds())
			f.Does("writer", "echo 'these very bytes' >/data/file; sync")
			mounts := f.Does("writer", "cat /proc/mounts")
			if want := " /data " + test.fsType + " " + test.mounted; !strings.Contains(mounts, want) {
				t.Errorf("no mount is %q:\n%s", want, mounts)
			}
			f.DeletePod("writer")
			got := f.RunPod("reader", "data", "cat /data/file", fixture.Filesystem)
			if want := "these very bytes\n"; got != want {
				t.Errorf("read %q, want %q", got, want)
			}
		})
	}
}

// TestBlockVolumeOfTwoPods: a Pod writes to a device, another reads it at the same time,
// which only block volumes may be used for, and both see it grow.
func TestBlockVolumeOfTwoPods(t *testing.T) {
	t.Parallel()
	f := suite.New(t, func(class *storagev1.StorageClass) { class.AllowVolumeExpansion = ptr.To(true) })
	volume := f.Claim("data", func(claim *corev1.PersistentVolumeClaim) {
		claim.Spec.VolumeMode = ptr.To(fixture.Block)
		claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	})
	const text = "straight onto the device"
	pods := []string{"writer", "reader"}
	for _, pod := range pods {
		f.Start(f.NewPodWith(pod, "data", "sleep 3600", fixture.Block))
	}
	for _, pod := range pods {
		f.Running(pod)
	}
	f.Does("writer", "printf '"+text+"' | dd of=/dev/data bs=1M seek=5 conv=fsync")
	got := f.Does("reader", fmt.Sprintf("dd if=/dev/data bs=1M skip=5 count=1 | head -c %d", len(text)))
	if got != text {
		t.Errorf("the other Pod reads %q, want %q", got, text)
	}
	f.Grow("data", "2Gi")
	f.Grown("data", 2<<10)
	for _, pod := range pods {
		if got := f.Does(pod, "blockdev --getsize64 /dev/data"); got != "2147483648\n" {
			t.Errorf("the %s sees a device of %q bytes", pod, got)
		}
	}
	for _, pod := range pods {
		f.DeletePod(pod)
	}

	f.Holds(volume, 5<<20, text)
}

// TestReadOnlyMany: two Pods read a clone. It is mapped read-only, so that a client
// elsewhere that uses the image does not keep them from it.
func TestReadOnlyMany(t *testing.T) {
	t.Parallel()
	f := suite.New(t, nil)
	f.Claim("data", nil)
	f.RunPod("writer", "data", "echo 'for all' >/data/file", fixture.Filesystem)
	volume := f.Claim("copy", func(claim *corev1.PersistentVolumeClaim) {
		claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
		claim.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "data"}
	})
	end := watch(f, fixture.Image(volume))
	pods := []string{"reader-0", "reader-1"}
	for _, pod := range pods {
		f.Start(f.NewPodWith(pod, "copy", "sleep 3600", fixture.Filesystem))
	}
	for _, pod := range pods {
		f.Running(pod)
		if got := f.Does(pod, "cat /data/file"); got != "for all\n" {
			t.Errorf("%s reads %q", pod, got)
		}
		_, err := f.Exec(pod, "touch /data/another")
		if err == nil || !strings.Contains(err.Error(), "Read-only file system") {
			t.Errorf("writing in %s: %v", pod, err)
		}
	}
	image := strings.TrimPrefix(fixture.Image(volume), f.Name+"/")
	out, err := suite.OnNode(t.Context(), "", `
		for name in $(grep -l -x `+image+` /sys/bus/rbd/devices/*/name); do
			id=$(basename "$(dirname "$name")"); cat /sys/block/rbd"$id"/ro; done`)
	f.Must(err)
	if out != "1\n" {
		t.Errorf("read-only devices: %q, want one", out)
	}
	end()
	for _, pod := range pods {
		f.DeletePod(pod)
	}
}

// TestOnePodOnly: two Pods want a ReadWriteOncePod claim, and the second one starts when
// the first is gone. Both have a part of the volume, which belongs to the group that they
// ask for.
func TestOnePodOnly(t *testing.T) {
	t.Parallel()
	f := suite.New(t, nil)
	f.Claim("data", func(claim *corev1.PersistentVolumeClaim) {
		claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	})
	start := func(name string) {
		pod := f.NewPodWith(name, "data", "sleep 3600", fixture.Filesystem)
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{
			RunAsUser: ptr.To[int64](1000), RunAsGroup: ptr.To[int64](1000), FSGroup: ptr.To[int64](2000),
		}
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data", SubPath: "part/of"}}
		f.Start(pod)
	}
	start("first")
	f.Running("first")
	start("second")
	f.Event("second", "ReadWriteOncePod")
	if got := f.Does("first", "echo written >/data/file; sync; stat -c %g /data /data/file"); got != "2000\n2000\n" {
		t.Errorf("folder and file belong to the groups %q", got)
	}
	f.DeletePod("first")
	f.Running("second")
	if got := f.Does("second", "cat /data/file"); got != "written\n" {
		t.Errorf("the second Pod reads %q", got)
	}
	f.DeletePod("second")
	if got := f.RunPod("third", "data", "cat /data/part/of/file", fixture.Filesystem); got != "written\n" {
		t.Errorf("the whole volume has %q", got)
	}
}

// TestScheduledPodGetsItsVolume: nothing is made for a claim that waits for its first
// consumer. Then the scheduler picks the node, and writes it into the claim. The one
// secret of all claims is in another namespace, and its user is restricted to the pool.
func TestScheduledPodGetsItsVolume(t *testing.T) {
	t.Parallel()
	f := suite.New(t, func(class *storagev1.StorageClass) {
		class.VolumeBindingMode = ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)
		class.Parameters["userSecretNamespace"] = fixture.Namespace
	})
	f.Create("data", nil)
	f.Event("data", "waiting for first consumer")
	f.RunPod("writer", "data", "echo written >/data/file", fixture.Filesystem)
	volume := f.Bound("data")
	if volume.Spec.CSI == nil {
		t.Fatalf("the volume has the source %v", volume.Spec.PersistentVolumeSource)
	}
	if got := volume.Spec.CSI.NodeStageSecretRef; got == nil || got.Namespace != fixture.Namespace {
		t.Errorf("the volume's secret is %v, want one in %s", got, fixture.Namespace)
	}
	claim, err := f.Claims().Get(t.Context(), "data", metav1.GetOptions{})
	f.Must(err)
	if got := claim.Annotations["volume.kubernetes.io/selected-node"]; got != suite.Rig.Node.Name {
		t.Errorf("the scheduler chose node %q, want %q", got, suite.Rig.Node.Name)
	}
}

// TestVolumeOfARunningPodStays deletes the claim of a running Pod: the Pod keeps its
// volume. Then the test removes Kubernetes' own protection by force, so that the
// provisioner is asked to delete a volume in use, and refuses. The image is removed
// without help when the Pod is gone.
func TestVolumeOfARunningPodStays(t *testing.T) {
	t.Parallel()
	f := suite.New(t, nil)
	volume := f.Claim("data", nil)
	image := fixture.Image(volume)
	f.Start(f.NewPodWith("running", "data", "sleep 3600", fixture.Filesystem))
	f.Running("running")
	f.Must(f.Claims().Delete(t.Context(), "data", metav1.DeleteOptions{}))
	_, err := f.Exec("running", "echo still >/data/file; sync")
	f.Must(err)
	f.Must(watchers(t.Context(), image, 1))

	_, err = f.Claims().Patch(t.Context(), "data", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	f.Must(err)
	f.Event(volume.Name, "image is in use by 10.77.0.2")
	_, err = f.Exec("running", "cat /data/file; echo and still >>/data/file; sync")
	f.Must(err)
	f.Must(watchers(t.Context(), image, 1))

	f.DeletePod("running")
	f.Eventually(f.NoImages)
}

// watchers returns nil when an image has that many.
func watchers(ctx context.Context, image string, want int) error {
	var status struct {
		Watchers []struct {
			Address string `json:"address"`
		} `json:"watchers"`
	}
	if err := suite.Rig.Ceph.JSON(ctx, &status, "rbd", "status", image); err != nil {
		return err
	}
	if len(status.Watchers) != want {
		return fmt.Errorf("image %s has %d watchers, want %d", image, len(status.Watchers), want)
	}
	return nil
}
