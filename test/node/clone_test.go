// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestCloneBesideItsSource: two Pods of one node use a volume and its clone at the same
// time. The second reads what the first had written, and neither sees the other's
// changes. The clone's Pod continues when the source is deleted, and while the clone is
// flattened. The clone is larger than the source, and so is its file system.
func TestCloneBesideItsSource(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fsType, options string
	}{
		{"ext4", ""},
		// Its UUID is the source's.
		{"xfs", "nouuid"},
	} {
		if !tested(test.fsType, "xfs") {
			continue
		}
		t.Run(test.fsType, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, func(class *storagev1.StorageClass) {
				class.Parameters["fsType"] = test.fsType
			})
			small := func(claim *corev1.PersistentVolumeClaim) {
				claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("400Mi")
			}
			source := f.claim("data", small)
			f.start(f.newPodWith("source", "data", "sleep 3600", filesystem))
			f.running("source")
			// Enough for several objects of the image.
			f.does("source", "head -c 9000000 /dev/urandom >/data/bytes; echo 'from before' >/data/file; sync")

			f.hideKey()        // the claim is one that grows
			const larger = 800 // MiB
			clone := f.claim("copy", func(claim *corev1.PersistentVolumeClaim) {
				claim.Spec.Resources.Requests[corev1.ResourceStorage] = *resource.NewQuantity(larger<<20, resource.BinarySI)
				claim.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "data"}
			})
			f.start(f.newPodWith("clone", "copy", "sleep 3600", filesystem))
			f.running("clone")
			if got := f.does("clone", "cat /data/file"); got != "from before\n" {
				t.Errorf("the clone has %q", got)
			}
			sum := f.does("source", "sha256sum </data/bytes")
			if got := f.does("clone", "sha256sum </data/bytes"); got != sum {
				t.Errorf("the clone's bytes have the sum %q, want %q", got, sum)
			}
			if mounts := f.does("clone", "grep ' /data ' /proc/mounts"); !strings.Contains(mounts, test.options) {
				t.Errorf("the clone is mounted as %q", mounts)
			}

			f.eventually(func(ctx context.Context) error {
				claim, err := f.claims().Get(ctx, "copy", metav1.GetOptions{})
				if err == nil && (claim.Status.Capacity.Storage().Value() != larger<<20 || len(claim.Status.Conditions) > 0) {
					err = fmt.Errorf("the claim has %v; %s", claim.Status, f.events(ctx, "copy"))
				}
				return err
			})
			if size := f.sizeMiB("clone"); size < larger*7/10 || size > larger {
				t.Errorf("the clone's Pod sees %d MiB", size)
			}

			f.does("clone", "echo 'of the clone' >/data/file; rm /data/bytes; sync")
			f.does("source", "echo 'of the source' >/data/file; sync")
			for pod, want := range map[string]string{"source": "of the source\n", "clone": "of the clone\n"} {
				if got := f.does(pod, "cat /data/file"); got != want {
					t.Errorf("the Pod of the %s reads %q, want %q", pod, got, want)
				}
			}
			if got := f.does("source", "sha256sum </data/bytes"); got != sum {
				t.Errorf("the source's bytes have the sum %q, want %q", got, sum)
			}

			f.deletePod("source")
			f.must(f.claims().Delete(t.Context(), "data", metav1.DeleteOptions{}))
			f.eventually(func(ctx context.Context) error {
				_, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, source.Name, metav1.GetOptions{})
				if apierrors.IsNotFound(err) {
					return nil
				}
				return errors.Join(err, fmt.Errorf("volume %s is still there; %s", source.Name, f.events(ctx, source.Name)))
			})
			if got := f.does("clone", "cat /data/file"); got != "of the clone\n" {
				t.Errorf("without its source the clone has %q", got)
			}
			_, err := rig.Ceph.Run(t.Context(), "rbd", "flatten", "--no-progress", f.name+"/"+clone.Spec.RBD.RBDImage)
			f.must(err)
			f.does("clone", "echo 'of a flattened one' >/data/file; sync")
			f.deletePod("clone")
			if got := f.run("again", "copy", "cat /data/file", filesystem); got != "of a flattened one\n" {
				t.Errorf("mounted anew the clone has %q", got)
			}
		})
	}
}

// does runs a script in a running Pod, which must succeed, and returns what it wrote.
func (f *fixture) does(pod, script string) string {
	f.Helper()
	out, err := f.exec(pod, script)
	f.must(err)
	return out
}
