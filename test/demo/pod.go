// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// podName and podFile are those of examples/pod.yaml.
	podName = "rbd-pod"
	podFile = "/data/times"
	// podPatience bounds the wait for the Pod, whose node is emulated. On an idle machine
	// it runs within half a minute.
	podPatience = 3 * time.Minute
)

// stayingPod reads the example and keeps the Pod running when its work is done, so that
// there is something to look at.
func stayingPod(path string) (*corev1.Pod, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the example Pod: %w", err)
	}
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(text, pod); err != nil {
		return nil, fmt.Errorf("read the example Pod %s: %w", path, err)
	}
	if len(pod.Spec.Containers) != 1 || len(pod.Spec.Containers[0].Command) != 3 {
		return nil, fmt.Errorf("read the example Pod %s: it does not run one script", path)
	}
	pod.Spec.Containers[0].Command[2] += " && sleep infinity"
	// As process 1, sleep ignores SIGTERM.
	pod.Spec.TerminationGracePeriodSeconds = ptr.To[int64](1)
	return pod, nil
}

// runPod makes the example Pod and waits until it has written to its volume.
func runPod(ctx context.Context, c *cluster.Cluster) error {
	pod, err := stayingPod("examples/pod.yaml")
	if err != nil {
		return err
	}
	client := c.Kube.Client.CoreV1().Pods(metav1.NamespaceDefault)
	if _, err := client.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create Pod %s: %w", pod.Name, err)
	}
	err = cluster.Eventually(ctx, podPatience, func(ctx context.Context) error {
		live, err := client.Get(ctx, pod.Name, metav1.GetOptions{})
		if err == nil && live.Status.Phase != corev1.PodRunning {
			err = fmt.Errorf("pod %s is %s", pod.Name, live.Status.Phase)
		}
		return err
	})
	if err == nil {
		err = cluster.Eventually(ctx, podPatience, func(ctx context.Context) error {
			out, err := c.Kube.Kubectl(ctx, "", "logs", pod.Name)
			if err == nil && out == "" {
				err = errors.New("it has written nothing yet")
			}
			return err
		})
	}
	if err != nil {
		// The events say why. If there are none, the first error has to do.
		events, _ := c.Kube.Kubectl(ctx, "", "describe", "pod", pod.Name)
		return fmt.Errorf("wait for the Pod: %w\n%s", err, events)
	}
	return nil
}
