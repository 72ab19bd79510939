// SPDX-License-Identifier: Apache-2.0

// Package ops serves operators over HTTP: /healthz, /readyz and /metrics.
package ops

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
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

// Handler answers GET and HEAD on the three paths. There are no others, and no debug handlers.
//
// live, at /healthz, detects faults that a restart cures; ready, at /readyz, faults that
// end without one. Both return nil if all is well. They must neither block nor make calls
// that leave the process.
func Handler(live, ready func() error, metrics prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz", check(live))
	mux.Handle("GET /readyz", check(ready))
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	return http.MaxBytesHandler(mux, maxBodyBytes)
}

// check answers 200 and "ok", or 503 and what is wrong.
func check(run func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := run(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		// An error here means that the client is gone.
		_, _ = fmt.Fprintln(w, "ok")
	}
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
