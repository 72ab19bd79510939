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
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

func TestCSIDriver(t *testing.T) {
	driver := one[*storagev1.CSIDriver](t, load(t, nodeDir))
	if driver.Name != volume.CSIDriver {
		t.Errorf("got driver %q, want %q", driver.Name, volume.CSIDriver)
	}
	yes, no, file := true, false, storagev1.FileFSGroupPolicy
	if diff := cmp.Diff(storagev1.CSIDriverSpec{
		AttachRequired: &yes, PodInfoOnMount: &no, FSGroupPolicy: &file,
		VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent},
	}, driver.Spec); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
}

// The DaemonSet runs the Deployment's image on every node. Neither they nor service and
// budget select the other's Pods.
func TestNodePluginBesideTheDeployment(t *testing.T) {
	install := load(t, installDirs...)
	deployment := one[*appsv1.Deployment](t, install)
	set := one[*appsv1.DaemonSet](t, load(t, nodeDir))
	if set.Namespace != deployment.Namespace {
		t.Errorf("got namespace %q, want %q", set.Namespace, deployment.Namespace)
	}
	pod := set.Spec.Template
	if got, want := pod.Spec.Containers[0].Image, deployment.Spec.Template.Spec.Containers[0].Image; got != want {
		t.Errorf("got image %q, want %q", got, want)
	}
	for who, s := range map[string]*metav1.LabelSelector{
		"the Deployment": deployment.Spec.Selector, "the PodDisruptionBudget": one[*policyv1.PodDisruptionBudget](t, install).Spec.Selector,
		"the Service": {MatchLabels: one[*corev1.Service](t, install).Spec.Selector},
	} {
		selector, err := metav1.LabelSelectorAsSelector(s)
		if err != nil || selector.Matches(labels.Set(pod.Labels)) {
			t.Errorf("%s selects the node plugin's Pods (%v)", who, err)
		}
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil || !selector.Matches(labels.Set(pod.Labels)) || selector.Matches(labels.Set(deployment.Spec.Template.Labels)) {
		t.Errorf("the DaemonSet selects %q (%v)", selector, err)
	}
	if got := pod.Spec.Tolerations; len(got) != 1 || got[0] != (corev1.Toleration{Operator: corev1.TolerationOpExists}) {
		t.Errorf("got tolerations %v", got)
	}
	if update := set.Spec.UpdateStrategy; update.Type != appsv1.RollingUpdateDaemonSetStrategyType || update.RollingUpdate.MaxUnavailable.IntValue() != 1 {
		t.Errorf("got update strategy %v", update)
	}
}

// The node plugin has what mounting needs, and nothing of the API server's.
func TestNodePluginHasWhatItNeeds(t *testing.T) {
	pod := one[*appsv1.DaemonSet](t, load(t, nodeDir)).Spec.Template.Spec
	if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken || pod.ServiceAccountName != "" {
		t.Error("it gets a token for the API server")
	}
	if !pod.HostNetwork || pod.DNSPolicy != corev1.DNSClusterFirstWithHostNet || pod.HostPID || pod.HostIPC {
		t.Error("it does not have exactly the node's network")
	}
	if pod.PriorityClassName != "system-node-critical" {
		t.Errorf("got priority %q", pod.PriorityClassName)
	}
	yes, root := true, int64(0)
	container := pod.Containers[0]
	if diff := cmp.Diff(&corev1.SecurityContext{Privileged: &yes, RunAsUser: &root, RunAsGroup: &root, ReadOnlyRootFilesystem: &yes},
		container.SecurityContext); diff != "" {
		t.Errorf("securityContext (-want +got):\n%s", diff)
	}
	var got []string
	for _, m := range container.VolumeMounts {
		i := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Errorf("there is no volume %q", m.Name)
			continue
		}
		source := "empty"
		if host := pod.Volumes[i].HostPath; host != nil {
			source = host.Path
		}
		if p := m.MountPropagation; p != nil {
			source += " " + string(*p)
		}
		got = append(got, m.MountPath+": "+source)
	}
	want := []string{
		"/csi: /var/lib/kubelet/plugins/rbd.ceph.com", "/registration: /var/lib/kubelet/plugins_registry",
		"/var/lib/kubelet: /var/lib/kubelet Bidirectional", "/dev: /dev", "/run: empty", "/tmp: empty",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("volumes (-want +got):\n%s", diff)
	}
	for who, probe := range map[string]*corev1.Probe{"liveness": container.LivenessProbe, "readiness": container.ReadinessProbe} {
		if probe.HTTPGet.Port.StrVal != container.Ports[0].Name {
			t.Errorf("the %s probe asks %v", who, probe.HTTPGet.Port)
		}
	}
}

// docs/install.md tells people where kubelet's folder is named.
func TestKubeletsFolderIsSaidInOnePlace(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, nodeDir, "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	replaced := strings.ReplaceAll(string(data), "/var/lib/kubelet", "/data/kubelet")
	if strings.Contains(replaced, "/var/lib") {
		t.Error("replacing kubelet's folder leaves another path of it")
	}
}
