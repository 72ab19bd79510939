// SPDX-License-Identifier: Apache-2.0

// Package contender is what the programs have in common that the benchmark compares:
// flags, a client, readiness, and the count of requests to the API server. The benchmark
// starts them as it starts the provisioner.
package contender

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/component-base/metrics/legacyregistry"
	_ "k8s.io/component-base/metrics/prometheus/restclient" // rest_client_requests_total
	"k8s.io/klog/v2"
)

// Main is a contender's main: it serves /readyz and /metrics, and runs work, which
// blocks, until SIGTERM. limits sets the client's limits.
func Main(limits func(*rest.Config), work func(ctx context.Context, client kubernetes.Interface, name string) error) {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig `file`")
	endpoint := flag.String("http-endpoint", "", "`address` for /readyz and /metrics")
	klog.InitFlags(nil)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *kubeconfig, *endpoint, limits, work)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig, endpoint string, limits func(*rest.Config), work func(context.Context, kubernetes.Interface, string) error) error {
	name := os.Getenv("PROVISIONER_NAME")
	if name == "" {
		return errors.New("PROVISIONER_NAME is not set")
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("-kubeconfig: %w", err)
	}
	limits(config)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("-kubeconfig: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/readyz", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("/metrics", legacyregistry.Handler())
	server := &http.Server{Addr: endpoint, Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 2)
	// Both end with the process. With its own leader election, the library exits with
	// status 1 when its context ends, so it does not get one that does.
	go func() { ended <- server.ListenAndServe() }()
	go func() { ended <- work(context.WithoutCancel(ctx), client, name) }()
	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return fmt.Errorf("ended by itself: %w", err)
	}
}
