// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func environment(env map[string]string) func(string) string {
	return func(name string) string { return env[name] }
}

func parse(t *testing.T, env map[string]string, args ...string) *options {
	t.Helper()
	o, err := parseOptions(args, environment(env), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestDefaults(t *testing.T) {
	o := parse(t, nil)
	if o.provisionerName != "ceph.com/rbd" || o.identity != "ceph.com/rbd" || o.leaseName() != "ceph.com-rbd" {
		t.Errorf("got provisioner %q, identity %q, lease %q", o.provisionerName, o.identity, o.leaseName())
	}
	if !o.leaderElection || o.leaseNamespace != "default" || o.httpEndpoint != "" || o.commandTimeout != 15*time.Second ||
		o.warnVolumeSize.Value() != 1<<50 {
		t.Errorf("got %+v", o)
	}
}

// An existing Deployment keeps working with only its image changed.
func TestRetiredDeployment(t *testing.T) {
	o := parse(t, map[string]string{"PROVISIONER_NAME": "example.com/rbd", "POD_NAMESPACE": "ceph"},
		"-id=one", "--metrics-port=9102", "-command-timeout", "30", "-use-pv-name", "-logtostderr", "-stderrthreshold=INFO", "-v=5",
		"-master=https://10.0.0.1", "-kubeconfig=/etc/kubeconfig", "--leader-election=false")
	got := map[string]any{
		"name": o.provisionerName, "id": o.identity, "lease": o.leaseName(), "namespace": o.leaseNamespace,
		"http": o.httpEndpoint, "timeout": o.commandTimeout, "pv name": o.usePVName, "ignored": o.ignored,
		"v": int(o.logging.Verbosity), "master": o.master, "kubeconfig": o.kubeconfig, "election": o.leaderElection,
	}
	want := map[string]any{
		"name": "example.com/rbd", "id": "one", "lease": "example.com-rbd", "namespace": "ceph",
		"http": ":9102", "timeout": 30 * time.Second, "pv name": true, "ignored": []string{"-logtostderr", "-stderrthreshold"},
		"v": 5, "master": "https://10.0.0.1", "kubeconfig": "/etc/kubeconfig", "election": false,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("options (-want +got):\n%s", diff)
	}
}

func TestWrongOptions(t *testing.T) {
	for _, test := range []struct {
		args string
		want []string // in the one error
	}{
		{"-command-timeout=0", []string{"-command-timeout is 0: it must be at least 1 second"}},
		{"-worker-threads=0 -kube-api-qps=0 -metrics-port=70000", []string{
			"-worker-threads is 0", "-kube-api-qps is 0", "-metrics-port is 70000"}},
		{"-leader-election-lease-duration=5s", []string{"must be above -leader-election-renew-deadline (10s)"}},
		{"-leader-election-retry-period=10s", []string{"1.2 times -leader-election-retry-period (10s)"}},
		{"-metrics-port=1 -http-endpoint=:2", []string{"give one of them"}},
		{"-http-endpoint=8080", []string{"as in :8080"}},
		{"-logging-format=xml", []string{"logging flags", "xml"}},
		{"-warn-volume-size=much", []string{"-warn-volume-size", "much"}},
		{"-frobnicate", []string{"flag provided but not defined: -frobnicate"}},
		{"run", []string{`unexpected argument "run"`}},
	} {
		_, err := parseOptions(strings.Fields(test.args), environment(nil), io.Discard)
		if err == nil {
			t.Errorf("%s: got no error", test.args)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %q, want it to say %q", test.args, err, want)
			}
		}
	}
	for _, name := range []string{"a/b/c", "a b", "example.com/my_rbd"} {
		_, err := parseOptions(nil, environment(map[string]string{"PROVISIONER_NAME": name}), io.Discard)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("PROVISIONER_NAME is %q", name)) {
			t.Errorf("a provisioner named %q: got %v", name, err)
		}
	}
	parse(t, map[string]string{"PROVISIONER_NAME": "example.com/My_rbd"}, "-leader-election=false")
}

func TestHelp(t *testing.T) {
	var out bytes.Buffer
	if _, err := parseOptions([]string{"-help"}, environment(nil), &out); !errors.Is(err, flag.ErrHelp) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"PROVISIONER_NAME", "-command-timeout seconds", "-logging-format", "-v "} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help does not tell of %q", want)
		}
	}
	for _, clutter := range []string{"stderrthreshold", "info-buffer-size"} {
		if strings.Contains(out.String(), clutter) {
			t.Errorf("help tells of %q", clutter)
		}
	}
}

func TestRunSaysWhatItIs(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"-version"}, environment(nil), &out, &errs); code != 0 || !strings.HasPrefix(out.String(), "rbd-provisioner "+version+"\nlibrados ") {
		t.Errorf("-version: got %d, %q", code, out.String())
	}
	if code := run([]string{"-nonsense"}, environment(nil), &out, &errs); code != 2 || !strings.Contains(errs.String(), "-nonsense") {
		t.Errorf("a wrong flag: got %d, %q", code, errs.String())
	}
}
