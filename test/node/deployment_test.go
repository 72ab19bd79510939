// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// TestDeployment looks at the replicas from within: the kernel enforces what the
// manifests promise.
func TestDeployment(t *testing.T) {
	f := newFixture(t, nil)
	pods, err := replicas(t.Context())
	f.must(err)
	if len(pods) != 2 {
		t.Fatalf("got %d replicas, want 2", len(pods))
	}
	name, err := leader(t.Context())
	f.must(err)
	for _, pod := range pods {
		if restarts := pod.Status.ContainerStatuses[0].RestartCount; restarts != 0 {
			t.Errorf("%s was restarted %d times", pod.Name, restarts)
		}
		status, err := rig.Kube.Kubectl(t.Context(), "", "exec", "-n", namespace, pod.Name, "--", "cat", "/proc/1/status")
		f.must(err)
		for field, want := range map[string]string{
			"Uid":        "65532\t65532\t65532\t65532",
			"Gid":        "65532\t65532\t65532\t65532",
			"CapPrm":     "0000000000000000",
			"CapEff":     "0000000000000000",
			"CapBnd":     "0000000000000000",
			"NoNewPrivs": "1",
			"Seccomp":    "2", // a filter
		} {
			if line := field + ":\t" + want; !strings.Contains(status, line+"\n") {
				t.Errorf("%s runs without %q:\n%s", pod.Name, line, status)
			}
		}
		_, err = rig.Kube.Kubectl(t.Context(), "", "exec", "-n", namespace, pod.Name, "--", "touch", "/tmp/file")
		if err == nil || !strings.Contains(err.Error(), "Read-only file system") {
			t.Errorf("writing to the root of %s: %v", pod.Name, err)
		}
		// Both are ready and one leads; each says so.
		metrics, err := get(t.Context(), "http://"+pod.Status.PodIP+":8080/metrics")
		f.must(err)
		want := "0"
		if pod.Name == name {
			want = "1"
		}
		if line := `leader_election_master_status{name="ceph.com-rbd"} ` + want; !strings.Contains(metrics, line+"\n") {
			t.Errorf("the metrics of %s do not say %q", pod.Name, line)
		}
	}
	slices, err := rig.Kube.Client.DiscoveryV1().EndpointSlices(namespace).List(t.Context(), metav1.ListOptions{
		LabelSelector: "kubernetes.io/service-name=" + deployment,
	})
	f.must(err)
	var ready int
	for _, slice := range slices.Items {
		for _, endpoint := range slice.Endpoints {
			if ptr.Deref(endpoint.Conditions.Ready, false) {
				ready++
			}
		}
	}
	if ready != len(pods) {
		t.Errorf("the service has %d ready endpoints, want %d", ready, len(pods))
	}
}

// TestLeaderKilled kills the leader while claims are pending; their Pods start
// nevertheless. The leader has no chance to do anything: it gets SIGKILL.
func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	first, err := leader(t.Context())
	f.must(err)
	kill := f.killer()
	var names []string
	for i := range 20 {
		names = append(names, "data-"+strconv.Itoa(i))
		f.create(names[i], nil)
		if i == 10 {
			kill(first)
		}
	}
	var second string
	f.eventually(func(ctx context.Context) error {
		second, err = leader(ctx)
		if err == nil && second == first {
			err = fmt.Errorf("%s still leads", first)
		}
		return err
	})
	t.Logf("%s took over from %s", second, first)
	for _, name := range names {
		f.bound(name)
	}
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
	for _, claim := range names[9:11] {
		f.run("pod-of-"+claim, claim, "echo written >/data/file", filesystem)
	}
	// Kubelet starts it again, for the tests after this one.
	f.eventually(deployed)
}

// leader returns the name of the Pod that holds the lease.
func leader(ctx context.Context) (string, error) {
	lease, err := rig.Kube.Client.CoordinationV1().Leases(namespace).Get(ctx, "ceph.com-rbd", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	// In a Pod, the host's name is the Pod's.
	name, _, found := strings.Cut(ptr.Deref(lease.Spec.HolderIdentity, ""), "_")
	if !found {
		return "", errors.New("nobody holds the lease")
	}
	return name, nil
}

// killer starts a Pod that sees the node's processes. The function that it returns kills
// the provisioner in the Pod with a name.
func (f *fixture) killer() func(pod string) {
	f.Helper()
	pod := f.newPod("killer", "sleep 3600")
	pod.Spec.HostPID = true
	// To read to which Pod a process of another user belongs.
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}},
	}
	f.start(pod)
	f.running(pod.Name)
	return func(name string) {
		f.Helper()
		script := `for environ in $(grep -lxz HOSTNAME=` + name + ` /proc/[0-9]*/environ); do
			pid=${environ#/proc/}; kill -9 "${pid%/environ}"; echo killed; done`
		out, err := rig.Kube.Kubectl(f.Context(), "", "exec", "-n", f.name, pod.Name, "--", "sh", "-c", script)
		f.must(err)
		if out != "killed\n" {
			f.Fatalf("killing the provisioner in %s: %q", name, out)
		}
	}
}

// get returns the body of a page whose status is 200.
func get(ctx context.Context, url string) (string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(answer.Body)
	if err := errors.Join(err, answer.Body.Close()); err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", url, answer.Status, body)
	}
	return string(body), nil
}
