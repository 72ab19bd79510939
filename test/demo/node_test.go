// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ceph.com/rbd-provisioner/test/cluster"
)

// A demo with a node takes minutes on a busy machine. These tests are about the parts
// that need none.

func TestStayingPod(t *testing.T) {
	pod, err := stayingPod("../../examples/pod.yaml")
	if err != nil {
		t.Fatal(err)
	}
	container := pod.Spec.Containers[0]
	script := container.Command[2]
	if pod.Name != podName || container.VolumeMounts[0].MountPath != path.Dir(podFile) || !strings.Contains(script, podFile) {
		t.Errorf("Pod %s has its volume in %s and runs %q, want %s and %s",
			pod.Name, container.VolumeMounts[0].MountPath, script, podName, podFile)
	}
	if !strings.HasSuffix(script, "&& sleep infinity") {
		t.Errorf("it ends: %q", script)
	}
}

func TestNeedsPlugin(t *testing.T) {
	for version, want := range map[string]bool{
		"v1.30.14": false, "v1.31.0": true, "v1.31.0-alpha.1": true, "v1.36.3": true, "v1.30.14+vendor.1": false,
	} {
		if got, err := needsPlugin(version); err != nil || got != want {
			t.Errorf("%s: got %t, %v, want %t", version, got, err, want)
		}
	}
}

func TestWithNode(t *testing.T) {
	for version, want := range map[string]string{
		"v1.30.14": "make demo NODE=1", "v1.36.3": "make demo NODE=1 K8S_VERSION=1.36.3",
	} {
		if got := withNode(version); got != want {
			t.Errorf("with Kubernetes %s it says %q, want %q", version, got, want)
		}
	}
}

// nodeDemo is the input of the instructions for a demo with a node.
func nodeDemo(dir string) *cluster.Cluster {
	return &cluster.Cluster{
		Dir:  dir,
		Ceph: &cluster.Ceph{Conf: filepath.Join(dir, "ceph.conf")},
		Kube: &cluster.Kubernetes{
			Version: "v1.30.14", Kubeconfig: filepath.Join(dir, "kubeconfig"), KubectlPath: filepath.Join(dir, "bin", "kubectl"),
		},
		Node: &cluster.Node{},
	}
}

func TestInstructionsWithNode(t *testing.T) {
	text := instructions(nodeDemo("/demo"), "http://10.77.0.1:10000")
	for _, want := range []string{
		"\n  /demo/shell\n", "/demo/shell kubectl describe pod rbd-pod", "/demo/log",
		"/demo/shell curl -s http://10.77.0.1:10000/metrics", "make demo-down",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
}

// TestShell runs the script with a process in another network namespace instead of a
// demo.
func TestShell(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's here")
	c := nodeDemo(dir)
	const kubectl = `#!/bin/sh
readlink /proc/self/ns/net
echo "$KUBECONFIG $CEPH_CONF proxy=$HTTPS_PROXY$https_proxy $*"
`
	if err := errors.Join(
		os.MkdirAll(filepath.Dir(c.Kube.KubectlPath), 0o700),
		os.WriteFile(c.Kube.KubectlPath, []byte(kubectl), 0o700),
		os.WriteFile(c.Kube.Kubeconfig, nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	// It ends with this process, even if that is killed.
	demo := exec.CommandContext(t.Context(), "tail", fmt.Sprintf("--pid=%d", os.Getpid()), "-f", c.Kube.Kubeconfig)
	demo.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := demo.Start(); err != nil {
		t.Fatal(err) // not root
	}
	t.Cleanup(func() { _ = demo.Wait() }) // killed when the test's context ends
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", demo.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HTTPS_PROXY", "http://192.0.2.1")
	t.Setenv("https_proxy", "http://192.0.2.1")
	t.Setenv("SHELL", "/bin/sh")
	said := fmt.Sprintf("%s\n%s %s proxy= ", namespace, c.Kube.Kubeconfig, c.Ceph.Conf)
	tests := []struct {
		name, stdin, want string
		pid               int
		args              []string
	}{
		{"a command", "", said + "get pods with space\n", demo.Process.Pid, []string{"kubectl", "get", "pods", "with space"}},
		{"a shell", "kubectl get pods", "In this shell kubectl, rbd and ceph are those of the demo; exit leaves it\n" + said + "get pods\n", demo.Process.Pid, nil},
		{"its process id is a stranger's", "", "The demo does not run any more; to start it: make demo NODE=1\n", os.Getpid(), []string{"kubectl"}},
		{"its process is gone", "", "The demo does not run any more; to start it: make demo NODE=1\n", 1 << 30, []string{"kubectl"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			script := filepath.Join(t.TempDir(), "shell")
			if err := os.WriteFile(script, []byte(shellScript(c, test.pid)), 0o700); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), script, test.args...)
			cmd.Stdin = strings.NewReader(test.stdin)
			out, err := cmd.CombinedOutput()
			if refused := test.pid != demo.Process.Pid; refused != (err != nil) {
				t.Errorf("it ended with %v", err)
			}
			if string(out) != test.want {
				t.Errorf("got %q, want %q", out, test.want)
			}
		})
	}
}
