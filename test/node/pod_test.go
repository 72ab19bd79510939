// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

const (
	filesystem = corev1.PersistentVolumeFilesystem
	block      = corev1.PersistentVolumeBlock
)

func TestPodReadsWhatAnotherHasWritten(t *testing.T) {
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
		if !tested(test.fsType, "ext4") {
			continue
		}
		t.Run(test.fsType, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, func(class *storagev1.StorageClass) {
				class.Parameters["fsType"] = test.fsType
				class.MountOptions = test.options
			})
			f.claim("data", nil)
			mounts := f.run("writer", "data", "echo 'these very bytes' >/data/file; cat /proc/mounts", filesystem)
			if want := " /data " + test.fsType + " " + test.mounted; !strings.Contains(mounts, want) {
				t.Errorf("no mount is %q:\n%s", want, mounts)
			}
			got := f.run("reader", "data", "cat /data/file", filesystem)
			if want := "these very bytes\n"; got != want {
				t.Errorf("read %q, want %q", got, want)
			}
		})
	}
}

func TestBlockVolumeHoldsWhatAPodHasWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	volume := f.claim("data", func(claim *corev1.PersistentVolumeClaim) {
		claim.Spec.VolumeMode = ptr.To(block)
	})
	const text = "straight onto the device"
	f.run("writer", "data", "printf '"+text+"' | dd of=/dev/data bs=1M seek=5 conv=fsync", block)

	export := filepath.Join(t.TempDir(), "image")
	_, err := rig.Ceph.Run(t.Context(), "rbd", "export", f.name+"/"+volume.Spec.RBD.RBDImage, export)
	f.must(err)
	file, err := os.Open(export)
	f.must(err)
	defer func() { _ = file.Close() }() // only read
	got := make([]byte, len(text)+1)
	_, err = file.ReadAt(got, 5<<20)
	f.must(err)
	if want := text + "\x00"; !bytes.Equal(got, []byte(want)) {
		t.Errorf("the image holds %q, want %q", got, want)
	}
}

// TestSharedOnANode: two Pods write to a volume at the same time, as ReadWriteOnce allows
// on one node, and two others read it at the same time.
func TestSharedOnANode(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	f.claim("data", func(claim *corev1.PersistentVolumeClaim) {
		claim.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadOnlyMany}
	})
	pair := func(readOnly bool, script string) (names [2]string) {
		for i := range names {
			names[i] = fmt.Sprintf("pod-%t-%d", readOnly, i)
			pod := f.newPodWith(names[i], "data", "sleep 3600", filesystem)
			pod.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = readOnly
			f.start(pod)
		}
		for _, name := range names {
			f.running(name)
		}
		for _, name := range names {
			_, err := f.exec(name, script)
			f.must(err)
		}
		return names
	}
	writers := pair(false, `echo here >/data/"$HOSTNAME"; sync`)
	for _, name := range writers {
		f.deletePod(name)
	}
	readers := pair(true, "cat /data/pod-false-0 /data/pod-false-1")
	for _, name := range readers {
		_, err := f.exec(name, "touch /data/file")
		if err == nil || !strings.Contains(err.Error(), "Read-only file system") {
			t.Errorf("writing in %s: %v", name, err)
		}
	}
	for _, name := range readers {
		f.deletePod(name)
	}
}

// TestScheduledPodGetsItsVolume: nothing is made for a claim that waits for its first
// consumer. Then the scheduler picks the node, and writes it into the claim. The one
// secret of all claims is in another namespace, and its user is restricted to the pool.
func TestScheduledPodGetsItsVolume(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(class *storagev1.StorageClass) {
		class.VolumeBindingMode = ptr.To(storagev1.VolumeBindingWaitForFirstConsumer)
		class.Parameters["userSecretNamespace"] = namespace
	})
	f.create("data", nil)
	f.event("data", "waiting for first consumer")
	f.run("writer", "data", "echo written >/data/file", filesystem)
	volume := f.bound("data")
	if got := volume.Spec.RBD.SecretRef; got == nil || got.Namespace != namespace {
		t.Errorf("the volume's secret is %v, want one in %s", got, namespace)
	}
	claim, err := f.claims().Get(t.Context(), "data", metav1.GetOptions{})
	f.must(err)
	if got := claim.Annotations["volume.kubernetes.io/selected-node"]; got != rig.Node.Name {
		t.Errorf("the scheduler chose node %q, want %q", got, rig.Node.Name)
	}
}

// TestVolumeOfARunningPodStays deletes the claim of a running Pod: the Pod keeps its
// volume. Then the test removes Kubernetes' own protection by force, so that the
// provisioner is asked to delete a volume in use, and refuses. The image is removed
// without help when the Pod is gone.
func TestVolumeOfARunningPodStays(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	volume := f.claim("data", nil)
	image := f.name + "/" + volume.Spec.RBD.RBDImage
	f.start(f.newPodWith("running", "data", "sleep 3600", filesystem))
	f.running("running")
	f.must(f.claims().Delete(t.Context(), "data", metav1.DeleteOptions{}))
	_, err := f.exec("running", "echo still >/data/file; sync")
	f.must(err)
	f.must(watchers(t.Context(), image, 1))

	_, err = f.claims().Patch(t.Context(), "data", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	f.must(err)
	f.event(volume.Name, "image is in use by 10.77.0.2")
	_, err = f.exec("running", "cat /data/file; echo and still >>/data/file; sync")
	f.must(err)
	f.must(watchers(t.Context(), image, 1))

	f.deletePod("running")
	f.eventually(f.noImages)
}

// watchers returns nil when an image has that many.
func watchers(ctx context.Context, image string, want int) error {
	var status struct {
		Watchers []struct {
			Address string `json:"address"`
		} `json:"watchers"`
	}
	if err := rig.Ceph.JSON(ctx, &status, "rbd", "status", image); err != nil {
		return err
	}
	if len(status.Watchers) != want {
		return fmt.Errorf("image %s has %d watchers, want %d", image, len(status.Watchers), want)
	}
	return nil
}
