// SPDX-License-Identifier: Apache-2.0

package ops_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"ceph.com/rbd-provisioner/provisioner/ops"
)

func handler(live, ready error) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "a_gauge", Help: "For the test."}))
	return ops.Handler(func() error { return live }, func() error { return ready }, registry)
}

func TestHandler(t *testing.T) {
	for _, test := range []struct {
		name, method, path string
		live, ready        error
		wantStatus         int
		wantBody           string
	}{
		{"alive", "GET", "/healthz", nil, errors.New("not yet"), 200, "ok\n"},
		{"alive, asked by HEAD", "HEAD", "/healthz", nil, nil, 200, ""},
		{"not alive: says why", "GET", "/healthz", errors.New("lease: not renewed"), nil, 503, "lease: not renewed\n"},
		{"ready", "GET", "/readyz", errors.New("ill"), nil, 200, "ok\n"},
		{"not ready", "GET", "/readyz", nil, errors.New("caches: not yet"), 503, "caches: not yet\n"},
		{"metrics", "GET", "/metrics", nil, nil, 200, "a_gauge 0"},
		{"no debug handlers", "GET", "/debug/pprof/", nil, nil, 404, ""},
		{"nothing at the root", "GET", "/", nil, nil, 404, ""},
		{"nor their single pages", "GET", "/debug/pprof/heap", nil, nil, 404, ""},
		{"nor flags to set", "PUT", "/debug/flags/v", nil, nil, 404, ""},
		{"metrics, asked by HEAD", "HEAD", "/metrics", nil, nil, 200, ""},
		{"nothing to post", "POST", "/healthz", nil, nil, 405, ""},
		{"nothing to post to metrics", "POST", "/metrics", nil, nil, 405, ""},
		{"nothing to put", "PUT", "/readyz", nil, nil, 405, ""},
		{"nothing to delete", "DELETE", "/metrics", nil, nil, 405, ""},
		{"nothing to ask of", "OPTIONS", "/metrics", nil, nil, 405, ""},
		{"nothing to trace", "TRACE", "/healthz", nil, nil, 405, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			handler(test.live, test.ready).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), test.method, test.path, nil))
			if w.Code != test.wantStatus || !strings.Contains(w.Body.String(), test.wantBody) {
				t.Errorf("got %d %q, want %d %q", w.Code, w.Body, test.wantStatus, test.wantBody)
			}
		})
	}
}

// Each scrape gathers and prints all metrics: only so many at a time.
func TestScrapesAreBounded(t *testing.T) {
	started, release := make(chan struct{}, 100), make(chan struct{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "slow", Help: "For the test."}, func() float64 {
		started <- struct{}{}
		<-release
		return 1
	}))
	h := ops.Handler(nil, nil, registry)
	scrape := func() int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
		return w.Code
	}
	codes := make(chan int, 100)
	for range 100 {
		go func() { codes <- scrape() }()
	}
	refused := 0
	for range 96 {
		if <-codes == http.StatusServiceUnavailable {
			refused++
		}
	}
	close(release)
	for range 4 {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("a scrape within the bound: got %d", code)
		}
	}
	if refused != 96 || len(started) != 4 {
		t.Errorf("%d were refused and %d served, want 96 and 4", refused, len(started))
	}
}

func TestServeUntilDone(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- ops.Serve(ctx, listener, handler(nil, nil)) }()

	url := "http://" + listener.Addr().String() + "/readyz"
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.Body.Close() != nil || string(body) != "ok\n" {
		t.Errorf("got %q, %v", body, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("after the end: got %v, want nil", err)
	}
	if _, err := net.Dial("tcp", listener.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

func TestServeSaysWhyItStopped(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ops.Serve(t.Context(), listener, handler(nil, nil)); err == nil {
		t.Error("a closed listener: got no error")
	}
}
