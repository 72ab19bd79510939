// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// TestFileSystemGrowsUnderAPod raises the request of a claim that a Pod uses: the Pod
// sees the larger file system without a restart, and keeps its file. Then the claim says
// so.
func TestFileSystemGrowsUnderAPod(t *testing.T) {
	t.Parallel()
	for _, fsType := range []string{"ext4", "xfs"} {
		if !tested(fsType, "ext4") {
			continue
		}
		t.Run(fsType, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, func(class *storagev1.StorageClass) {
				class.Parameters["fsType"] = fsType
				class.AllowVolumeExpansion = ptr.To(true)
			})
			f.hideKey()
			f.claim("data", nil)
			f.start(f.newPodWith("running", "data", "sleep 3600", filesystem))
			f.running("running")
			_, err := f.exec("running", "echo 'from before' >/data/file; sync")
			f.must(err)
			const before, after = 1 << 10, 2 << 10 // MiB; a file system takes some for itself
			if size := f.sizeMiB("running"); size < before*8/10 || size > before {
				t.Errorf("at first the Pod sees %d MiB", size)
			}

			_, err = f.claims().Patch(t.Context(), "data", types.MergePatchType,
				[]byte(`{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`), metav1.PatchOptions{})
			f.must(err)
			f.event("data", "External resizer is resizing volume")
			f.eventually(func(ctx context.Context) error {
				claim, err := f.claims().Get(ctx, "data", metav1.GetOptions{})
				if err == nil && (claim.Status.Capacity.Storage().Value() != after<<20 || len(claim.Status.Conditions) > 0) {
					err = fmt.Errorf("the claim has %v; %s", claim.Status, f.events(ctx, "data"))
				}
				return err
			})
			if size := f.sizeMiB("running"); size < after*8/10 || size > after {
				t.Errorf("in the end the Pod sees %d MiB", size)
			}
			if got, err := f.exec("running", "cat /data/file"); err != nil || got != "from before\n" {
				t.Errorf("read %q, %v", got, err)
			}
			f.deletePod("running")
		})
	}
}

// hideKey gives the admin's secret a type that kube-controller-manager does not accept:
// the rig has the rbd command, so it would grow the image itself.
func (f *fixture) hideKey() {
	f.Helper()
	secrets := rig.Kube.Client.CoreV1().Secrets(namespace)
	secret, err := secrets.Get(f.Context(), f.name+"-admin", metav1.GetOptions{})
	f.must(err)
	f.must(secrets.Delete(f.Context(), secret.Name, metav1.DeleteOptions{}))
	_, err = secrets.Create(f.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: secret.Name, Labels: secret.Labels},
		Type:       corev1.SecretTypeOpaque,
		Data:       secret.Data,
	}, metav1.CreateOptions{})
	f.must(err)
}

// sizeMiB returns the size of the file system that a Pod has in /data.
func (f *fixture) sizeMiB(pod string) int {
	f.Helper()
	out, err := f.exec(pod, "df -m /data | tail -n 1")
	f.must(err)
	fields := strings.Fields(out)
	if len(fields) < 2 {
		f.Fatalf("df says %q", out)
	}
	f.Logf("df says %s", strings.TrimSpace(out))
	size, err := strconv.Atoi(fields[1])
	f.must(err)
	return size
}
