// SPDX-License-Identifier: Apache-2.0

// Package node tests what users want volumes for: Pods that write to them. The node is
// real but emulated (see cluster.Node), and the provisioner runs on it as a user installs
// it: the image that the Dockerfile makes, rbac/ and deploy/.
//
// One rig serves all tests. Each has its own namespace, pool and class. Tests that need
// no Pod are in test/e2e, which is much quicker.
//
// In the short form, a test about a file system uses either ext4 or xfs, so that some
// test formats, mounts and checks each of them. With NODE_FILE_SYSTEMS=all, the long
// form, it uses both.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// root is the root folder of the repository.
	root = "../.."
	// namespace is that of rbac/ and deploy/; deployment is the Deployment's name, and a
	// label of its Pods.
	namespace  = "kube-system"
	deployment = "rbd-provisioner"
	podLabel   = "app.kubernetes.io/name=" + deployment
	// patience bounds each wait. On an idle machine, a Pod is done within half a minute.
	patience = 3 * time.Minute
	// archiveVariable holds the path of the image, as hack/image/build.sh prints it.
	archiveVariable = "PROVISIONER_ARCHIVE"
)

// tested reports whether a test runs with a file system. The short form has only the
// given one.
func tested(fsType, short string) bool {
	return fsType == short || os.Getenv("NODE_FILE_SYSTEMS") == "all"
}

// rig is shared by all tests, and set before the first one runs.
var rig *cluster.Cluster

func TestMain(m *testing.M) {
	if os.Getenv(holdVariable) != "" {
		fmt.Fprintln(os.Stderr, hold())
		os.Exit(1)
	}
	code, err := runTests(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "node:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	archive := os.Getenv(archiveVariable)
	if _, err := os.Stat(archive); err != nil {
		return 1, fmt.Errorf(`%s names no image: %w: run "make test-node"`, archiveVariable, err)
	}
	if err := cluster.EnterNamespace(); err != nil {
		return 1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	defer cancel()
	begin := time.Now()
	say := func(line string) { fmt.Printf("%5.1f s  %s\n", time.Since(begin).Seconds(), line) }
	rig, err = cluster.Start(ctx, cluster.Config{Node: true, NodeImages: []string{archive}, Progress: say})
	if err != nil {
		return 1, err
	}
	defer func() {
		if code != 0 || err != nil {
			rig.DumpLogs(os.Stderr)
			dumpDeployment(ctx, os.Stderr)
		}
		err = errors.Join(err, rig.Stop())
	}()
	if err := install(ctx); err != nil {
		return 1, err
	}
	say("the Deployment is ready")
	return m.Run(), nil
}

// install does what the README says, with the files as they are: the image has the name
// that the Deployment says, and its pull policy uses the present one.
func install(ctx context.Context) error {
	args := []string{"apply"}
	for _, folder := range []string{"rbac", "deploy"} {
		path, err := filepath.Abs(filepath.Join(root, folder))
		if err != nil {
			return err
		}
		args = append(args, "-f", path)
	}
	if _, err := rig.Kube.Kubectl(ctx, "", args...); err != nil {
		return err
	}
	return cluster.Eventually(ctx, patience, func(ctx context.Context) error { return deployed(ctx) })
}

// deployed returns nil when all replicas of the Deployment are ready.
func deployed(ctx context.Context) error {
	d, err := rig.Kube.Client.AppsV1().Deployments(namespace).Get(ctx, deployment, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if want := *d.Spec.Replicas; d.Status.ObservedGeneration < d.Generation || d.Status.Replicas != want || d.Status.ReadyReplicas != want {
		return fmt.Errorf("%d of %d replicas are ready", d.Status.ReadyReplicas, want)
	}
	return nil
}

// replicas are the Pods of the Deployment.
func replicas(ctx context.Context) ([]corev1.Pod, error) {
	list, err := rig.Kube.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: podLabel})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// dumpDeployment writes what a person would want to know when the Deployment does not
// work.
func dumpDeployment(ctx context.Context, w io.Writer) {
	for _, args := range [][]string{
		{"describe", "pods", "-n", namespace, "-l", podLabel},
		{"logs", "-n", namespace, "-l", podLabel, "--prefix", "--tail=60"},
		{"get", "pods,pvc,pv", "-A"},
	} {
		// If this can't be read, that must not hide the failure.
		out, err := rig.Kube.Kubectl(ctx, "", args...)
		if err != nil {
			out += err.Error()
		}
		_, _ = fmt.Fprintf(w, "=== kubectl %v\n%s\n", args, out)
	}
}
