// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ceph.com/rbd-provisioner/test/node/fixture"
)

// TestRestarts: a Pod writes on while the plugin is killed, while kubelet is restarted and
// while there is no plugin at all. A Pod that ends meanwhile waits for the plugin, and is
// cleaned up after by a later one. No other test runs at the same time: they need what
// this one stops.
func TestRestarts(t *testing.T) {
	f := suite.New(t, nil)
	volume := f.Claim("data", nil)
	f.Start(f.NewPodWith("writer", "data", "i=0; while true; do i=$((i+1)); echo $i >>/data/numbers; sync; sleep 0.2; done", fixture.Filesystem))
	f.Running("writer")
	if err := f.NothingOnNode(t.Context()); err == nil {
		t.Error("the look at the node, by which each test ends, does not find a volume in use")
	}

	before := plugin(f)
	onNode(f, "kill -9 $("+fixture.PluginProcess+")")
	f.Eventually(func(ctx context.Context) error {
		pods, err := suite.Plugins(ctx)
		if err == nil && (len(pods) != 1 || pods[0].Status.ContainerStatuses[0].RestartCount <= before.Status.ContainerStatuses[0].RestartCount) {
			err = errors.New("the plugin was not restarted")
		}
		return errors.Join(err, suite.PluginReady(ctx))
	})
	writesOn(f, "after the plugin was killed")

	const kubelet = "pidof kubelet"
	old := onNode(f, kubelet)
	// The answer comes through kubelet, so there is none.
	_, _ = suite.OnNode(t.Context(), "", "touch /proc/1/root/rig/restart; kill $(pidof kubelet)")
	f.Eventually(func(ctx context.Context) error {
		// This goes through kubelet.
		pid, err := suite.OnNode(ctx, "", kubelet)
		if err == nil && pid == old {
			err = errors.New("kubelet was not restarted")
		}
		return errors.Join(err, suite.PluginReady(ctx))
	})
	writesOn(f, "after kubelet was restarted")

	removePlugin(f)
	writesOn(f, "without the plugin")
	f.Must(f.Pods().Delete(t.Context(), "writer", metav1.DeleteOptions{}))
	f.Eventually(func(context.Context) error {
		log, err := os.ReadFile(filepath.Join(suite.Rig.Dir, "log", "kubelet.log"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, volume.Spec.CSI.VolumeHandle) && strings.Contains(line, "TearDown failed") {
				return nil
			}
		}
		return errors.New("kubelet has not tried to unmount the volume")
	})
	f.Must(watchers(t.Context(), fixture.Image(volume), 1))
	bringPluginBack(f)
	f.Eventually(func(ctx context.Context) error { return watchers(ctx, fixture.Image(volume), 0) })

	numbers := f.RunPod("reader", "data", "cat /data/numbers", fixture.Filesystem)
	i := 0
	for line := range strings.Lines(numbers) {
		i++
		if line != strconv.Itoa(i)+"\n" {
			t.Fatalf("line %d is %q", i, line)
		}
	}
}

// plugin is the plugin's Pod.
func plugin(f *fixture.Fixture) corev1.Pod {
	f.Helper()
	pods, err := suite.Plugins(f.Context())
	f.Must(err)
	if len(pods) != 1 {
		f.Fatalf("the plugin has %d Pods", len(pods))
	}
	return pods[0]
}

// removePlugin lets the DaemonSet ask for a node that does not exist.
func removePlugin(f *fixture.Fixture) {
	f.Helper()
	selectNodes(f, `{"no":"node"}`)
	f.Cleanup(func() { selectNodes(f, `{"no":null}`) })
	f.Eventually(func(ctx context.Context) error {
		pods, err := suite.Plugins(ctx)
		if err == nil && len(pods) > 0 {
			err = errors.New("the plugin still has a Pod")
		}
		return err
	})
}

func bringPluginBack(f *fixture.Fixture) {
	f.Helper()
	selectNodes(f, `{"no":null}`)
	f.Eventually(suite.PluginReady)
}

func selectNodes(f *fixture.Fixture, selector string) {
	f.Helper()
	patch := `{"spec":{"template":{"spec":{"nodeSelector":` + selector + `}}}}`
	_, err := suite.Rig.Kube.Client.AppsV1().DaemonSets(fixture.Namespace).Patch(context.WithoutCancel(f.Context()),
		fixture.DaemonSet, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	f.Must(err)
}

// writesOn checks that the writer, never restarted, goes on counting.
func writesOn(f *fixture.Fixture, when string) {
	f.Helper()
	var first int
	f.Eventually(func(context.Context) (err error) {
		first, err = lastNumber(f)
		return err
	})
	f.Eventually(func(context.Context) error {
		next, err := lastNumber(f)
		if err == nil && next <= first {
			err = fmt.Errorf("%s, the Pod stays at %d", when, next)
		}
		return err
	})
	pod, err := f.Pods().Get(f.Context(), "writer", metav1.GetOptions{})
	f.Must(err)
	if restarts := pod.Status.ContainerStatuses[0].RestartCount; restarts != 0 || pod.Status.Phase != corev1.PodRunning {
		f.Errorf("%s, the Pod is %s and was restarted %d times", when, pod.Status.Phase, restarts)
	}
}

// lastNumber is what the writer has written last.
func lastNumber(f *fixture.Fixture) (int, error) {
	out, err := f.Exec("writer", "tail -n 1 /data/numbers")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(out))
}

// onNode runs a script on the node, which must succeed.
func onNode(f *fixture.Fixture, script string) string {
	f.Helper()
	out, err := suite.OnNode(f.Context(), "", script)
	f.Must(err)
	return out
}
