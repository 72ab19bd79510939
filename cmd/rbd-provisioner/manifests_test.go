// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// manifest decodes a file of the checkout that holds one object.
func manifest[T any](t *testing.T, path string) T {
	t.Helper()
	data, err := os.ReadFile("../../" + path)
	if err != nil {
		t.Fatal(err)
	}
	var object T
	if err := yaml.UnmarshalStrict(data, &object); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return object
}

// What the program checks at its start, and says that it needs, is what rbac/
// grants: no less and no more.
func TestPermissionsAreThoseOfTheManifests(t *testing.T) {
	const namespace = "kube-system"
	var granted []string
	add := func(namespace string, rules []rbacv1.PolicyRule) {
		for _, r := range rules {
			names := r.ResourceNames
			if len(names) == 0 {
				names = []string{""}
			}
			for _, resource := range r.Resources {
				for _, name := range names {
					for _, verb := range r.Verbs {
						p := permission{group: r.APIGroups[0], resource: resource, namespace: namespace, name: name}
						granted = append(granted, p.describe(verb))
					}
				}
			}
		}
	}
	add("", manifest[rbacv1.ClusterRole](t, "rbac/clusterrole.yaml").Rules)
	add("", manifest[rbacv1.ClusterRole](t, "rbac/resize-clusterrole.yaml").Rules)
	add(namespace, manifest[rbacv1.Role](t, "rbac/role.yaml").Rules)

	var checked []string
	for _, p := range parse(t, map[string]string{"POD_NAMESPACE": namespace}).permissions(namespace) {
		for _, verb := range p.verbs {
			checked = append(checked, p.describe(verb))
		}
	}
	slices.Sort(granted)
	slices.Sort(checked)
	if diff := cmp.Diff(granted, checked); diff != "" {
		t.Errorf("permissions (-granted by rbac/ +checked by the program):\n%s", diff)
	}
}

// The arguments and the environment of the Deployment are understood, and fit
// its probes.
func TestDeploymentArguments(t *testing.T) {
	container := manifest[appsv1.Deployment](t, "deploy/deployment.yaml").Spec.Template.Spec.Containers[0]
	env := map[string]string{"POD_NAMESPACE": "kube-system"}
	for _, e := range container.Env {
		if e.Value != "" {
			env[e.Name] = e.Value
		}
	}
	o, err := parseOptions(container.Args, environment(env), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(":%d", container.Ports[0].ContainerPort); o.httpEndpoint != want {
		t.Errorf("it serves on %q, its probes ask on %q", o.httpEndpoint, want)
	}
	if o.provisionerName != "ceph.com/rbd" || o.leaseNamespace != "kube-system" {
		t.Errorf("got provisioner %q, lease in %q", o.provisionerName, o.leaseNamespace)
	}
}

// The same for the DaemonSet. Its sockets are where kubelet sees them, by way of its volumes.
func TestDaemonSetArguments(t *testing.T) {
	pod := manifest[appsv1.DaemonSet](t, "deploy/node/daemonset.yaml").Spec.Template.Spec
	container := pod.Containers[0]
	if container.Args[0] != nodeCommand {
		t.Fatalf("got arguments %q", container.Args)
	}
	if e := container.Env[0]; e.Name != envNodeName || e.ValueFrom.FieldRef.FieldPath != "spec.nodeName" {
		t.Errorf("got environment %v", container.Env)
	}
	o, err := parseNodeOptions(container.Args[1:], environment(map[string]string{envNodeName: "node-1"}), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf(":%d", container.Ports[0].ContainerPort); o.httpEndpoint != want {
		t.Errorf("it serves on %q, its probes ask on %q", o.httpEndpoint, want)
	}
	onNode := func(path string) string {
		for _, m := range container.VolumeMounts {
			for _, v := range pod.Volumes {
				if rest, inside := strings.CutPrefix(path, m.MountPath); inside && v.Name == m.Name && v.HostPath != nil {
					return v.HostPath.Path + rest
				}
			}
		}
		return ""
	}
	if got := onNode(o.sockets.CSI); got != o.sockets.KubeletCSI {
		t.Errorf("on the node, the socket %s is %q, kubelet is told %q", o.sockets.CSI, got, o.sockets.KubeletCSI)
	}
	if got := onNode(o.sockets.RegistrationDir); got != "/var/lib/kubelet/plugins_registry" {
		t.Errorf("it registers in %q", got)
	}
}
