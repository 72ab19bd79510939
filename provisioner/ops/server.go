// SPDX-License-Identifier: Apache-2.0

// Package ops serves operators over HTTP: /healthz, /readyz and /metrics. It knows checks
// and a registry, but not what they are about.
package ops

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/klog/v2"
)

// The server's limits keep clients from holding it up.
const (
	headerTimeout  = 5 * time.Second
	requestTimeout = 30 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	maxBodyBytes   = 1 << 10
	closeTimeout   = 2 * time.Second
	// maxScrapes limits concurrent requests for metrics, because the server builds each
	// answer in memory. Two Prometheus servers and a person still have room.
	maxScrapes = 4
)

// Check is one check of the process.
type Check struct {
	// Name appears in the answer if the check fails.
	Name string
	// Run returns nil if all is well. It must neither block nor make calls that leave the
	// process.
	Run func() error
}

// Config has what Handler serves.
type Config struct {
	// Live checks, at /healthz, detect faults that a restart cures.
	Live []Check
	// Ready checks, at /readyz, detect faults that end without one.
	Ready []Check
	// Metrics has what /metrics serves. Required.
	Metrics prometheus.Gatherer
}

// Handler answers GET and HEAD on the three paths. There are no others, and no debug
// handlers.
func Handler(c Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", checks(c.Live))
	mux.Handle("GET /readyz", checks(c.Ready))
	mux.Handle("GET /metrics", promhttp.HandlerFor(c.Metrics, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	return http.MaxBytesHandler(mux, maxBodyBytes)
}

// checks answers 200 and "ok", or 503 and a line for each check that fails.
func checks(list []Check) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		var failed []string
		for _, check := range list {
			if err := check.Run(); err != nil {
				failed = append(failed, fmt.Sprintf("%s: %v", check.Name, err))
			}
		}
		if len(failed) > 0 {
			http.Error(w, strings.Join(failed, "\n"), http.StatusServiceUnavailable)
			return
		}
		// An error here means that the client is gone.
		_, _ = fmt.Fprintln(w, "ok")
	})
}

// Serve answers on listener until ctx ends, and closes listener. It returns an error only
// if serving failed before that.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       requestTimeout,
		WriteTimeout:      requestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
	stop := context.AfterFunc(ctx, func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := server.Shutdown(closing); err != nil {
			klog.FromContext(ctx).V(2).Info("Closing the HTTP endpoint with requests under way", "err", err)
		}
	})
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP on %s: %w", listener.Addr(), err)
	}
	return nil
}
