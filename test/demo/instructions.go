// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// instructionsFile is written last: a demo whose folder has it is complete.
	instructionsFile = "instructions"
	// shellFile is, with a node, the script that leads to the network in which the demo
	// can be reached.
	shellFile = "shell"
)

// writeInstructions writes into the demo's folder how to use it, and returns the same
// text.
func writeInstructions(c *cluster.Cluster, url string) (string, error) {
	if c.Node != nil {
		script := shellScript(c, c.Kube.Etcd.PID())
		if err := os.WriteFile(filepath.Join(c.Dir, shellFile), []byte(script), 0o700); err != nil {
			return "", err
		}
	}
	text := instructions(c, url)
	return text, os.WriteFile(filepath.Join(c.Dir, instructionsFile), []byte(text), 0o600)
}

// instructions returns how to use a demo and how to end it. The provisioner answers at
// url.
func instructions(c *cluster.Cluster, url string) string {
	if c.Node != nil {
		return fmt.Sprintf(`Kubernetes %[1]s with a node, Ceph %[6]s and the provisioner keep running, in a
network namespace that nothing outside can reach. This enters it, with a shell
or for one command:

  %[2]s
  %[2]s kubectl describe pod %[3]s

Logs of all servers:  %[4]s (the node's: kubelet, containerd, node)
Metrics:              %[2]s curl -s %[5]s/metrics
To end it all: make demo-down
`, c.Kube.Version, filepath.Join(c.Dir, shellFile), podName, filepath.Join(c.Dir, "log"), url, c.Ceph.Version)
	}
	what := "kubectl of the same version"
	if c.Ceph.Programs != "" {
		what = "kubectl, ceph and rbd of the same versions"
	}
	return fmt.Sprintf(`Kubernetes %s, Ceph %s and the provisioner keep running. To use them:

  export KUBECONFIG=%s
  export CEPH_CONF=%s
  export PATH=%s:$PATH   # %s

Logs of all servers:  %s
Metrics:              %s/metrics
There are no nodes, so no Pod will run; %s has one. To end it all: make demo-down
`, c.Kube.Version, c.Ceph.Version, c.Kube.Kubeconfig, c.Ceph.Conf, programs(c), what,
		filepath.Join(c.Dir, "log"), url, withNode(c.Kube.Version))
}

// withNode is the command for a demo with a node of the same Kubernetes.
func withNode(version string) string {
	command := "make demo NODE=1"
	if version = strings.TrimPrefix(version, "v"); version != cluster.DefaultKubernetesVersion {
		command += " K8S_VERSION=" + version
	}
	return command
}

// shellScript runs a command or a shell in which kubectl, rbd and ceph are those of a
// demo with a node. It enters the demo's network namespace through a process of the demo.
// If the demo ended without make demo-down, another process may have that ID, so the
// script checks its arguments. No proxy can be reached from there.
func shellScript(c *cluster.Cluster, pid int) string {
	return fmt.Sprintf(`#!/bin/sh
# Runs a command, or without one a shell, in the network namespace of the demo.
if ! grep -qsF -e %[1]s/ /proc/%[2]d/cmdline; then
	echo "The demo does not run any more; to start it: make demo NODE=1" >&2
	exit 1
fi
export KUBECONFIG=%[3]s CEPH_CONF=%[4]s PATH=%[5]s:"$PATH"
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
if [ $# -eq 0 ]; then
	echo "In this shell kubectl, rbd and ceph are those of the demo; exit leaves it"
	set -- "${SHELL:-sh}"
fi
exec nsenter --net=/proc/%[2]d/ns/net -- "$@"
`, quote(c.Dir), pid, quote(c.Kube.Kubeconfig), quote(c.Ceph.Conf), quote(programs(c)))
}

// programs is what goes before PATH.
func programs(c *cluster.Cluster) string {
	path := filepath.Dir(c.Kube.KubectlPath)
	if c.Ceph.Programs != "" {
		path += ":" + c.Ceph.Programs
	}
	return path
}

// quote turns text into one word for a shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }
