// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

func TestNodeOptions(t *testing.T) {
	o, err := parseNodeOptions(nil, environment(map[string]string{envNodeName: "node-1"}), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if o.nodeID != "node-1" || o.sockets.CSI != "/csi/csi.sock" || o.sockets.KubeletCSI != "/var/lib/kubelet/plugins/rbd.ceph.com/csi.sock" ||
		o.sockets.RegistrationDir != "/registration" || o.commandTimeout != 15*time.Second || o.httpEndpoint != "" {
		t.Errorf("got %+v", o)
	}
	o, err = parseNodeOptions(strings.Fields("-node-id=other -endpoint /a -kubelet-endpoint /b -registration-dir /c --command-timeout=60 -http-endpoint=:1 -v=4"),
		environment(map[string]string{envNodeName: "node-1"}), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(o.nodeID, " ", o.sockets, " ", o.commandTimeout, " ", o.httpEndpoint, " v", int(o.logging.Verbosity)); got != "other {/a /b /c} 1m0s :1 v4" {
		t.Errorf("got %s", got)
	}
}

func TestWrongNodeOptions(t *testing.T) {
	for _, test := range []struct {
		args string
		want []string // in the one error
	}{
		{"", []string{"NODE_NAME", "-node-id"}},
		{"-command-timeout=0 -endpoint=csi.sock -http-endpoint=1", []string{
			"-command-timeout is 0", `-endpoint is "csi.sock"`, "as in :8081", "NODE_NAME"}},
		{"-node-id=a -command-timeout=61", []string{"from 1 to 60 seconds"}},
		{"-node-id=a -kubeconfig=x", []string{"not defined: -kubeconfig"}},
		{"-node-id=a -logging-format=xml", []string{"logging flags"}},
		{"-node-id=a node", []string{`unexpected argument "node"`}},
	} {
		_, err := parseNodeOptions(strings.Fields(test.args), environment(nil), io.Discard)
		if err == nil {
			t.Errorf("%q: want an error", test.args)
			continue
		}
		for _, want := range test.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q: got %q, want it to say %q", test.args, err, want)
			}
		}
	}
}

func TestNodeCommand(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := run([]string{"node", "-help"}, environment(nil), &stdout, &stderr); code != 0 || !strings.Contains(stdout.String(), "Usage: rbd-provisioner node") {
		t.Errorf("-help: got %d, %q, %q", code, &stdout, &stderr)
	}
	stdout.Reset()
	if code := run([]string{"node", "-version"}, environment(nil), &stdout, &stderr); code != 0 || !strings.HasPrefix(stdout.String(), "rbd-provisioner ") {
		t.Errorf("-version: got %d, %q, %q", code, &stdout, &stderr)
	}
	if code := run([]string{"node"}, environment(nil), &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), "NODE_NAME") {
		t.Errorf("no name: got %d, %q", code, &stderr)
	}
	stdout.Reset()
	if code := run([]string{"-help"}, environment(nil), &stdout, &stderr); code != 0 || !strings.Contains(stdout.String(), "rbd-provisioner node -help") {
		t.Errorf("the main help does not name the node plugin: %q", &stdout)
	}
}

func TestNodeMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	observe := newNodeObserver(registry)
	registerMapped(registry, func() int { return 3 })
	observe("NodeStageVolume", codes.OK, time.Second)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		got = append(got, f.GetName())
	}
	if fmt.Sprint(got) != "[rbd_provisioner_node_call_duration_seconds rbd_provisioner_node_mapped_images]" {
		t.Errorf("got %v", got)
	}
}
