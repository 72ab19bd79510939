// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
)

// TestRequestsAreCounted asks a server through the clients that the program has.
func TestRequestsAreCounted(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	registry := newRegistry()
	client, _, err := newClients(parse(t, nil, "-master="+server.URL))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := client.Discovery().ServerVersion(); err == nil {
			t.Fatal("the server knows its version, want it to know nothing")
		}
	}
	want := []string{"2 code=404 host=" + strings.TrimPrefix(server.URL, "http://") + " method=GET"}
	if diff := cmp.Diff(want, gather(t, registry, "rest_client_requests_total")); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

// gather returns the values of a metric with their labels.
func gather(t *testing.T, registry prometheus.Gatherer, name string) []string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, metric := range family.GetMetric() {
			text := fmt.Sprint(metric.GetCounter().GetValue() + metric.GetGauge().GetValue())
			for _, label := range metric.GetLabel() {
				text += fmt.Sprintf(" %s=%s", label.GetName(), label.GetValue())
			}
			got = append(got, text)
		}
	}
	return got
}

// TestClustersAreShown: a cluster that was upgraded is shown once.
func TestClustersAreShown(t *testing.T) {
	versions := map[string]string{"fsid-a": "16.2.15", "fsid-b": "unknown"}
	registry := newRegistry()
	registry.MustRegister(clusterCollector(func() map[string]string { return versions }))
	check := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, gather(t, registry, "rbd_provisioner_ceph_cluster_info")); diff != "" {
			t.Errorf("shown (-want +got):\n%s", diff)
		}
	}
	check("1 fsid=fsid-a version=16.2.15", "1 fsid=fsid-b version=unknown")
	versions["fsid-a"] = "20.2.4"
	check("1 fsid=fsid-a version=20.2.4", "1 fsid=fsid-b version=unknown")
}
