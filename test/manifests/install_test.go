// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"
)

func TestRBACHasOneObjectAFile(t *testing.T) {
	seen := map[string]bool{}
	for _, o := range load(t, "rbac") {
		if seen[o.file] {
			t.Errorf("%s has more than one object", o.file)
		}
		seen[o.file] = true
	}
}

func TestKustomizationHasAllFiles(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, "kustomization.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		metav1.TypeMeta `json:",inline"`
		Resources       []string `json:"resources"`
	}
	if err := yaml.UnmarshalStrict(data, &got); err != nil {
		t.Fatal(err)
	}
	want := yamlFiles(t, installDirs...)
	slices.Sort(want)
	slices.Sort(got.Resources)
	if diff := cmp.Diff(want, got.Resources); diff != "" {
		t.Errorf("resources (-want +got):\n%s", diff)
	}
}

// Everything is in one namespace, and says so: "kubectl apply -f" puts objects without a
// namespace into that of the user's context.
func TestInstallIsInOneNamespace(t *testing.T) {
	for _, o := range load(t, installDirs...) {
		want := "kube-system"
		switch o.obj.(type) {
		case *rbacv1.ClusterRole, *rbacv1.ClusterRoleBinding:
			want = ""
		}
		if got := o.meta.GetNamespace(); got != want {
			t.Errorf("%s: got namespace %q, want %q", o.file, got, want)
		}
	}
}

func TestAccountHasItsRights(t *testing.T) {
	install := load(t, installDirs...)
	account := one[*corev1.ServiceAccount](t, install)
	deployment := one[*appsv1.Deployment](t, install)
	if got := deployment.Spec.Template.Spec.ServiceAccountName; got != account.Name {
		t.Errorf("the Deployment runs as %q, want %q", got, account.Name)
	}

	want := []rbacv1.Subject{{Kind: "ServiceAccount", Name: account.Name, Namespace: account.Namespace}}
	objects := append(install, load(t, "examples")...)
	for _, b := range all[*rbacv1.ClusterRoleBinding](objects) {
		if diff := cmp.Diff(want, b.Subjects); diff != "" {
			t.Errorf("ClusterRoleBinding %s: subjects (-want +got):\n%s", b.Name, diff)
		}
		if _, ok := find[*rbacv1.ClusterRole](objects, "", b.RoleRef.Name); !ok || b.RoleRef.Kind != "ClusterRole" {
			t.Errorf("ClusterRoleBinding %s: there is no %s %s", b.Name, b.RoleRef.Kind, b.RoleRef.Name)
		}
	}
	for _, b := range all[*rbacv1.RoleBinding](objects) {
		if diff := cmp.Diff(want, b.Subjects); diff != "" {
			t.Errorf("RoleBinding %s/%s: subjects (-want +got):\n%s", b.Namespace, b.Name, diff)
		}
		if _, ok := find[*rbacv1.Role](objects, b.Namespace, b.RoleRef.Name); !ok || b.RoleRef.Kind != "Role" {
			t.Errorf("RoleBinding %s/%s: there is no %s %s", b.Namespace, b.Name, b.RoleRef.Kind, b.RoleRef.Name)
		}
	}
}

func TestRulesGrantNoMoreThanPromised(t *testing.T) {
	objects := load(t, "rbac", "examples")
	never := []string{"nodes", "services", "endpoints", "endpointslices", "pods", "*"}
	check := func(who string, rules []rbacv1.PolicyRule, secrets bool) {
		for _, r := range rules {
			for _, resource := range r.Resources {
				resource, _, _ = strings.Cut(resource, "/")
				if slices.Contains(never, resource) {
					t.Errorf("%s grants %v on %s", who, r.Verbs, resource)
				}
				if resource != "secrets" {
					continue
				}
				if !secrets {
					t.Errorf("%s grants secrets of all namespaces", who)
				}
				if diff := cmp.Diff([]string{"get"}, r.Verbs); diff != "" {
					t.Errorf("%s: verbs on secrets (-want +got):\n%s", who, diff)
				}
			}
			for _, verb := range r.Verbs {
				if slices.Contains([]string{"*", "deletecollection", "escalate", "bind", "impersonate"}, verb) {
					t.Errorf("%s grants %q on %v", who, verb, r.Resources)
				}
			}
			if slices.Contains(r.APIGroups, "*") || len(r.NonResourceURLs) > 0 {
				t.Errorf("%s grants all API groups or paths: %v", who, r)
			}
		}
	}
	for _, r := range all[*rbacv1.ClusterRole](objects) {
		check("ClusterRole "+r.Name, r.Rules, false)
	}
	for _, r := range all[*rbacv1.Role](objects) {
		check("Role "+r.Namespace+"/"+r.Name, r.Rules, true)
	}
}

// The lease that may be renewed is the one that the program derives from its name.
func TestLeaseIsNamedAfterTheProvisioner(t *testing.T) {
	install := load(t, installDirs...)
	want := []string{strings.ReplaceAll(provisionerName(t, install), "/", "-")}
	renew := 0
	for _, r := range one[*rbacv1.Role](t, install).Rules {
		if !slices.Contains(r.Resources, "leases") || slices.Equal(r.Verbs, []string{"create"}) {
			continue
		}
		renew++
		if diff := cmp.Diff(want, r.ResourceNames); diff != "" {
			t.Errorf("resourceNames of leases, %v (-want +got):\n%s", r.Verbs, diff)
		}
	}
	if renew != 1 {
		t.Errorf("got %d rules for existing leases, want 1", renew)
	}
}

func TestSelectorsAndPortsFit(t *testing.T) {
	install := load(t, installDirs...)
	deployment := one[*appsv1.Deployment](t, install)
	pod := deployment.Spec.Template
	budget := one[*policyv1.PodDisruptionBudget](t, install)
	service := one[*corev1.Service](t, install)

	selectors := map[string]*metav1.LabelSelector{
		"Deployment":          deployment.Spec.Selector,
		"PodDisruptionBudget": budget.Spec.Selector,
		"Service":             {MatchLabels: service.Spec.Selector},
	}
	for _, term := range pod.Spec.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
		selectors["anti-affinity"] = term.PodAffinityTerm.LabelSelector
	}
	for who, s := range selectors {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Errorf("%s: %v", who, err)
			continue
		}
		if selector.Empty() || !selector.Matches(labels.Set(pod.Labels)) {
			t.Errorf("%s selects %q, the Pods have %v", who, selector, pod.Labels)
		}
	}

	container := pod.Spec.Containers[0]
	var ports []string
	for _, p := range container.Ports {
		ports = append(ports, p.Name)
		if want := "-http-endpoint=:8080"; p.ContainerPort != 8080 || !slices.Contains(container.Args, want) {
			t.Errorf("port %s is %d, args are %q, want 8080 and %q", p.Name, p.ContainerPort, container.Args, want)
		}
	}
	for who, port := range map[string]string{
		"Service":         service.Spec.Ports[0].TargetPort.StrVal,
		"liveness probe":  container.LivenessProbe.HTTPGet.Port.StrVal,
		"readiness probe": container.ReadinessProbe.HTTPGet.Port.StrVal,
	} {
		if !slices.Contains(ports, port) {
			t.Errorf("%s uses port %q, the container has %q", who, port, ports)
		}
	}
}

// The Pods meet the Pod Security Standard "restricted", and more.
func TestPodsAreConfined(t *testing.T) {
	deployment := one[*appsv1.Deployment](t, load(t, "deploy"))
	if *deployment.Spec.Replicas != 2 {
		t.Errorf("got %d replicas, want 2", *deployment.Spec.Replicas)
	}
	pod := deployment.Spec.Template.Spec
	user := int64(65532)
	yes, no := true, false
	if diff := cmp.Diff(&corev1.PodSecurityContext{
		RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user,
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}, pod.SecurityContext); diff != "" {
		t.Errorf("the Pod's securityContext (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(&corev1.SecurityContext{
		AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes,
		Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}, pod.Containers[0].SecurityContext); diff != "" {
		t.Errorf("the container's securityContext (-want +got):\n%s", diff)
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC || len(pod.Volumes) > 0 {
		t.Error("the Pod uses something of its node")
	}

	dockerfile, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nUSER 65532:65532\n", "\nENTRYPOINT [\"/usr/local/bin/rbd-provisioner\"]\n"} {
		if !strings.Contains(string(dockerfile), want) {
			t.Errorf("the Dockerfile has no line %q", strings.TrimSpace(want))
		}
	}
}

// provisionerName is the name that the Deployment's Pods serve.
func provisionerName(t *testing.T, objects []object) string {
	t.Helper()
	for _, e := range one[*appsv1.Deployment](t, objects).Spec.Template.Spec.Containers[0].Env {
		if e.Name == "PROVISIONER_NAME" {
			return e.Value
		}
	}
	t.Fatal("the Deployment sets no PROVISIONER_NAME")
	return ""
}
