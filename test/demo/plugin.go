// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// archiveVariable holds the path of the image, as hack/image/build.sh prints it.
	archiveVariable = "PROVISIONER_ARCHIVE"
	// pluginName is that of the DaemonSet in deploy/node/.
	pluginName = "rbd-provisioner-node"
	// pluginPatience bounds the wait for the plugin on an emulated node.
	pluginPatience = 3 * time.Minute
)

// needsPlugin reports whether a Kubernetes is one without in-tree rbd volumes.
func needsPlugin(kubernetes string) (bool, error) {
	v, err := version.ParseSemantic(kubernetes)
	if err != nil {
		return false, fmt.Errorf("read the version of Kubernetes: %w", err)
	}
	return v.AtLeast(version.MustParseSemantic("1.31.0-0")), nil
}

// applyPlugin applies deploy/node/ where volumes need it. This comes before the first
// claim, whose volume is of the kind that nodes can mount.
func applyPlugin(ctx context.Context, c *cluster.Cluster, steps *steps) error {
	if needed, err := needsPlugin(c.Kube.Version); err != nil || !needed {
		return err
	}
	if c.Node != nil && os.Getenv(archiveVariable) == "" {
		return errors.New("the node has no image of the node plugin, which this Kubernetes needs: run \"make demo NODE=1\"")
	}
	steps.say("Applying deploy/node/, the node plugin")
	_, err := c.Kube.Kubectl(ctx, "", "apply", "-f", "deploy/node/")
	return err
}

// waitForPlugin waits until the node can mount volumes.
func waitForPlugin(ctx context.Context, c *cluster.Cluster, steps *steps) error {
	if needed, err := needsPlugin(c.Kube.Version); err != nil || !needed {
		return err
	}
	begin := time.Now()
	err := cluster.Eventually(ctx, pluginPatience, func(ctx context.Context) error {
		d, err := c.Kube.Client.AppsV1().DaemonSets(metav1.NamespaceSystem).Get(ctx, pluginName, metav1.GetOptions{})
		if err == nil && d.Status.NumberReady == 0 {
			err = errors.New("the node plugin is not ready")
		}
		return err
	})
	if err != nil {
		// The events say why. If there are none, the first error has to do.
		events, _ := c.Kube.Kubectl(ctx, "", "describe", "daemonset,pods", "-n", metav1.NamespaceSystem)
		return fmt.Errorf("wait for the node plugin: %w\n%s", err, events)
	}
	steps.say(fmt.Sprintf("The node plugin is ready after another %.1f s", time.Since(begin).Seconds()))
	return nil
}
