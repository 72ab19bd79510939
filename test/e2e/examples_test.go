// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ceph.com/rbd-provisioner/test/cluster"
)

// The examples are applied as they are, except for the monitors and the keys. They make a
// default class, so this test runs alone.
func TestExamples(t *testing.T) {
	ctx := t.Context()
	f := &fixture{T: t, name: "rbd"} // the pool that the examples' classes name
	key, err := rig.Ceph.Key(ctx, "admin")
	f.must(err)
	useKey(key)
	fill := strings.NewReplacer(
		"192.0.2.11:6789,192.0.2.12:6789,192.0.2.13:6789", "v1:"+rig.Ceph.MonitorV1,
		"PUT-THE-KEY-OF-THE-ADMIN-USER-HERE", key,
		"PUT-THE-KEY-OF-THE-USER-HERE", key,
	).Replace
	files, err := filepath.Glob(checkout("examples", "*.yaml"))
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d examples, %v", len(files), err)
	}
	kubectl := func(ctx context.Context, verb string, prefixes ...string) {
		t.Helper()
		for _, prefix := range prefixes {
			for _, file := range files {
				if !strings.HasPrefix(filepath.Base(file), prefix) {
					continue
				}
				text, err := os.ReadFile(file)
				f.must(err)
				_, err = rig.Kube.Kubectl(ctx, fill(string(text)), verb, "-f", "-")
				f.must(err)
			}
		}
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(ctx)
		kubectl(ctx, "delete", "statefulset", "pod", "clone", "claim")
		f.must(rig.Kube.Client.CoreV1().PersistentVolumeClaims("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
		f.must(cluster.Eventually(ctx, patience, func(ctx context.Context) error {
			volumes, err := f.volumes(ctx, "rbd")
			if err == nil && len(volumes) > 0 {
				err = fmt.Errorf("%d volumes are left", len(volumes))
			}
			return err
		}))
		f.must(rig.ImagesMatchVolumes(ctx, "rbd"))
		kubectl(ctx, "delete", "storageclass", "rbac", "secrets")
	})
	// What others need comes first: a claim gets the default class when it is made.
	kubectl(ctx, "apply", "secrets", "rbac", "storageclass", "claim", "clone", "pod", "statefulset")

	// The StatefulSet's controller makes a claim when the previous Pod is ready. There is
	// no kubelet here, so the rig says that it is.
	f.readyPods("default")
	const want = 7 // four by themselves, three of the StatefulSet
	var claims []corev1.PersistentVolumeClaim
	f.eventually(func(ctx context.Context) error {
		list, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		claims = list.Items
		if len(claims) != want {
			return fmt.Errorf("got %d claims, want %d", len(claims), want)
		}
		return nil
	})
	for _, claim := range claims {
		pv := f.bound(&claim)
		t.Logf("%s: %s, %s, %s", claim.Name, pv.Spec.StorageClassName, *pv.Spec.VolumeMode, pv.Spec.RBD.RBDImage)
	}
	f.must(rig.ImagesMatchVolumes(ctx, "rbd"))
}

// readyPods marks each Pod of a namespace as running and ready, as kubelet would, until
// the test ends.
func (f *fixture) readyPods(ns string) {
	f.Helper()
	ctx, cancel := context.WithCancel(f.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		// It ends with the error of the cancelled context, which says nothing useful.
		_ = cluster.Eventually(ctx, patience, func(ctx context.Context) error {
			pods, err := rig.Kube.Client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, pod := range pods.Items {
				if pod.Status.Phase == corev1.PodRunning {
					continue
				}
				patch := `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`
				if _, err := rig.Kube.Client.CoreV1().Pods(ns).Patch(ctx, pod.Name, types.StrategicMergePatchType,
					[]byte(patch), metav1.PatchOptions{}, "status"); err != nil {
					return err
				}
			}
			return fmt.Errorf("not ended yet")
		})
	}()
	f.Cleanup(func() {
		cancel()
		<-done
	})
}

// TestDeployCheck applies all manifests to the API server without keeping them, in both
// ways that the README describes.
func TestDeployCheck(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for name, args := range map[string][]string{
		"rbac and deploy": {"apply", "--dry-run=server", "-f", checkout("rbac"), "-f", checkout("deploy")},
		"node plugin":     {"apply", "--dry-run=server", "-f", checkout("deploy", "node")},
		"kustomize":       {"apply", "--dry-run=server", "-k", checkout()},
		"examples":        {"apply", "--dry-run=server", "-f", checkout("examples")},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := rig.Kube.Kubectl(ctx, "", args...)
			if err != nil {
				t.Fatal(err)
			}
			t.Log(out)
		})
	}

	// In another namespace, by an overlay as in docs/install.md.
	t.Run("kustomize with another namespace", func(t *testing.T) {
		f := newFixture(t)
		overlay := t.TempDir()
		relative, err := filepath.Rel(overlay, checkout())
		f.must(err)
		text := fmt.Sprintf("namespace: %s\nresources: [%s]\n", f.name, relative)
		f.must(os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(text), 0o600))
		out, err := rig.Kube.Kubectl(ctx, "", "apply", "--dry-run=server", "-o", "yaml", "-k", overlay)
		f.must(err)
		if strings.Contains(out, "namespace: kube-system") || !strings.Contains(out, "namespace: "+f.name) {
			t.Errorf("something stays in kube-system:\n%s", out)
		}
	})
}
