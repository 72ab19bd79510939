// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/test/node/fixture"
)

// TestExamples applies the examples as they are, except for the monitors and the keys.
// Their Pods find the image that they name on the node.
//
// The StatefulSet's claims name no class, so they get the default one. Its Pods start one
// after the other, and a new set finds the data of the old one.
func TestExamples(t *testing.T) {
	t.Parallel()
	f := suite.In(t, metav1.NamespaceDefault)
	pool := suite.In(t, "rbd") // which the examples' classes name
	ctx := context.WithoutCancel(t.Context())
	key, err := suite.Rig.Ceph.Key(ctx, "admin")
	f.Must(err)
	fill := strings.NewReplacer(
		"192.0.2.11:6789,192.0.2.12:6789,192.0.2.13:6789", "v1:"+suite.Rig.Ceph.MonitorV1,
		"PUT-THE-KEY-OF-THE-ADMIN-USER-HERE", key,
		"PUT-THE-KEY-OF-THE-USER-HERE", key,
	).Replace
	kubectl := func(verb string, names ...string) {
		t.Helper()
		for _, name := range names {
			text, err := os.ReadFile(filepath.Join(root, "examples", name+".yaml"))
			f.Must(err)
			_, err = suite.Rig.Kube.Kubectl(ctx, fill(string(text)), verb, "-f", "-")
			f.Must(err)
		}
	}
	kubectl("apply", "secrets", "rbac-extra-namespace", "storageclass", "storageclass-default", "claim", "pod")

	f.Succeeded("rbd-pod")
	kubectl("apply", "clone")
	f.Succeeded("rbd-clone-pod")
	out, err := f.Pods().GetLogs("rbd-clone-pod", &corev1.PodLogOptions{}).DoRaw(ctx)
	f.Must(err)
	if lines := strings.Count(string(out), "\n"); lines != 2 {
		t.Errorf("the Pod with the clone shows %q, want what both have written", out)
	}
	kubectl("delete", "clone", "pod", "claim")

	kubectl("apply", "statefulset")
	first := setReady(f)
	kubectl("delete", "statefulset")
	f.Eventually(func(ctx context.Context) error { return noPods(ctx, f, first) })
	kubectl("apply", "statefulset")
	second := setReady(f)
	for name, times := range first {
		if !strings.HasPrefix(second[name], times) {
			t.Errorf("%s had written %q, and now finds %q", name, times, second[name])
		}
	}

	kubectl("delete", "statefulset")
	f.Eventually(func(ctx context.Context) error { return noPods(ctx, f, first) })
	f.Must(f.Claims().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	f.Eventually(pool.NoImages)
	kubectl("delete", "storageclass-default", "storageclass", "rbac-extra-namespace", "secrets")
}

// setReady waits until the three Pods of the example's StatefulSet are ready, and checks
// that each was made when the one before it was ready. It returns what each has written
// so far.
func setReady(f *fixture.Fixture) map[string]string {
	f.Helper()
	written := map[string]string{}
	var before metav1.Time
	for i := range 3 {
		name := fmt.Sprintf("rbd-statefulset-%d", i)
		f.Running(name)
		pod, err := f.Pods().Get(f.Context(), name, metav1.GetOptions{})
		f.Must(err)
		if pod.CreationTimestamp.Before(&before) {
			f.Errorf("%s was made at %s, before the one before it was ready at %s", name, pod.CreationTimestamp, before)
		}
		f.Eventually(func(ctx context.Context) error {
			pod, err := f.Pods().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, condition := range pod.Status.Conditions {
				if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
					before = condition.LastTransitionTime
					return nil
				}
			}
			return fmt.Errorf("%s is not ready", name)
		})
		f.Eventually(func(context.Context) error {
			if written[name], err = f.Exec(name, "cat /data/times"); err == nil && written[name] == "" {
				err = fmt.Errorf("%s has written nothing", name)
			}
			return err
		})
	}
	return written
}

// noPods returns nil when none of the Pods exists.
func noPods(ctx context.Context, f *fixture.Fixture, names map[string]string) error {
	list, err := f.Pods().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, pod := range list.Items {
		if _, ours := names[pod.Name]; ours {
			return fmt.Errorf("pod %s is still there", pod.Name)
		}
	}
	return nil
}
