// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, family := range families {
		if family.GetName() != "rest_client_requests_total" {
			continue
		}
		for _, metric := range family.GetMetric() {
			text := fmt.Sprint(metric.GetCounter().GetValue())
			for _, label := range metric.GetLabel() {
				text += fmt.Sprintf(" %s=%s", label.GetName(), label.GetValue())
			}
			got = append(got, text)
		}
	}
	want := []string{"2 code=404 host=" + strings.TrimPrefix(server.URL, "http://") + " method=GET"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}
