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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/node/fixture"
)

// TestDeployment looks at the replicas from within: the kernel enforces what the
// manifests promise.
func TestDeployment(t *testing.T) {
	f := suite.New(t, nil)
	pods, err := suite.Replicas(t.Context())
	f.Must(err)
	if len(pods) != 2 {
		t.Fatalf("got %d replicas, want 2", len(pods))
	}
	name, err := leader(t.Context())
	f.Must(err)
	for _, pod := range pods {
		if restarts := pod.Status.ContainerStatuses[0].RestartCount; restarts != 0 {
			t.Errorf("%s was restarted %d times", pod.Name, restarts)
		}
		status, err := suite.Rig.Kube.Kubectl(t.Context(), "", "exec", "-n", fixture.Namespace, pod.Name, "--", "cat", "/proc/1/status")
		f.Must(err)
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
		_, err = suite.Rig.Kube.Kubectl(t.Context(), "", "exec", "-n", fixture.Namespace, pod.Name, "--", "touch", "/tmp/file")
		if err == nil || !strings.Contains(err.Error(), "Read-only file system") {
			t.Errorf("writing to the root of %s: %v", pod.Name, err)
		}
		// Both are ready and one leads; each says so.
		metrics, err := get(t.Context(), "http://"+pod.Status.PodIP+":8080/metrics")
		f.Must(err)
		want := "0"
		if pod.Name == name {
			want = "1"
		}
		if line := `leader_election_master_status{name="ceph.com-rbd"} ` + want; !strings.Contains(metrics, line+"\n") {
			t.Errorf("the metrics of %s do not say %q", pod.Name, line)
		}
	}
	slices, err := suite.Rig.Kube.Client.DiscoveryV1().EndpointSlices(fixture.Namespace).List(t.Context(), metav1.ListOptions{
		LabelSelector: "kubernetes.io/service-name=" + fixture.Deployment,
	})
	f.Must(err)
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
	f := suite.New(t, nil)
	first, err := leader(t.Context())
	f.Must(err)
	var names []string
	for i := range 20 {
		names = append(names, "data-"+strconv.Itoa(i))
		f.Create(names[i], nil)
		if i == 10 {
			killReplica(f, first)
		}
	}
	var second string
	f.Eventually(func(ctx context.Context) error {
		second, err = leader(ctx)
		if err == nil && second == first {
			err = fmt.Errorf("%s still leads", first)
		}
		return err
	})
	t.Logf("%s took over from %s", second, first)
	for _, name := range names {
		f.Bound(name)
	}
	f.Must(suite.Rig.ImagesMatchVolumes(t.Context(), f.Name))
	for _, claim := range names[9:11] {
		f.RunPod("pod-of-"+claim, claim, "echo written >/data/file", fixture.Filesystem)
	}
	// Kubelet starts it again, for the tests after this one.
	f.Eventually(suite.Deployed)
}

// leader returns the name of the Pod that holds the lease.
func leader(ctx context.Context) (string, error) {
	lease, err := suite.Rig.Kube.Client.CoordinationV1().Leases(fixture.Namespace).Get(ctx, "ceph.com-rbd", metav1.GetOptions{})
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

// killReplica kills the provisioner in the Pod with a name.
func killReplica(f *fixture.Fixture, name string) {
	f.Helper()
	out, err := suite.OnNode(f.Context(), "", `
		for environ in $(grep -lxz HOSTNAME=`+name+` /proc/[0-9]*/environ); do
			pid=${environ#/proc/}; kill -9 "${pid%/environ}"; echo killed; done`)
	f.Must(err)
	if out != "killed\n" {
		f.Fatalf("killing the provisioner in %s: %q", name, out)
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
