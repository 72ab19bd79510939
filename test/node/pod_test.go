// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

const (
	filesystem = corev1.PersistentVolumeFilesystem
	block      = corev1.PersistentVolumeBlock
)

func TestPodReadsWhatAnotherHasWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	f.claim("data", nil)
	f.run("writer", "data", "echo 'these very bytes' >/data/file", filesystem)
	got := f.run("reader", "data", "cat /data/file", filesystem)
	if want := "these very bytes\n"; got != want {
		t.Errorf("read %q, want %q", got, want)
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

// TestVolumeOfARunningPodStays deletes the claim of a Pod that runs: the Pod
// keeps its volume, and the image goes after the Pod.
func TestVolumeOfARunningPodStays(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	image := f.name + "/" + f.claim("data", nil).Spec.RBD.RBDImage
	f.pod("running", "data", "echo begun >/data/file; until [ -e /data/go ]; do sleep 0.2; done; echo end", filesystem)
	f.eventually(func(ctx context.Context) error { return f.phase(ctx, "running", corev1.PodRunning) })
	_, err := rig.Kube.Kubectl(t.Context(), "", "delete", "pvc", "data", "--namespace", f.name, "--wait=false")
	f.must(err)
	// It still writes, and the kernel still has the image.
	_, err = rig.Kube.Kubectl(t.Context(), "", "exec", "running", "--namespace", f.name, "--", "touch", "/data/go")
	f.must(err)
	f.must(watchers(t.Context(), image, 1))
	f.eventually(func(ctx context.Context) error { return f.phase(ctx, "running", corev1.PodSucceeded) })
	f.deletePod("running")
	f.eventually(f.noImages)
}

// watchers returns nil when an image has as many.
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
