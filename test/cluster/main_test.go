// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// roleVariable makes this test binary play another program.
const roleVariable = "RIG_TEST_ROLE"

// mountsBefore are those that were there when the tests began.
var mountsBefore, _ = os.ReadFile("/proc/self/mounts")

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	roles := map[string]func() error{
		"small":       func() error { return startAndWait(Config{SkipCeph: true, SkipKubernetes: true}) },
		"whole":       func() error { return startAndWait(Config{}) },
		"panic":       startAndPanic,
		"provisioner": playProvisioner,
	}
	if err := roles[role](); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// startAndWait starts a rig in the folder that the test chose and waits to be killed. It
// can't do anything about its end: no deferred call, no handler.
func startAndWait(cfg Config) error {
	if signal.Ignored(os.Interrupt) {
		// A shell that starts a program in the background lets it ignore ctrl-C.
		interrupted := make(chan os.Signal, 1)
		signal.Notify(interrupted, os.Interrupt)
		go func() { <-interrupted; os.Exit(130) }()
	}
	c, err := startSmall(cfg)
	if err != nil {
		return err
	}
	if c.Ceph != nil {
		if err := c.Ceph.OSD.Pause(context.Background()); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	select {}
}

func startAndPanic() error {
	if _, err := startSmall(Config{SkipCeph: true, SkipKubernetes: true}); err != nil {
		return err
	}
	panic("as a test does")
}

// startSmall starts a rig and adds three processes that are hard to end: one
// paused, one that ignores SIGTERM, one whose child has a session of its own.
func startSmall(cfg Config) (*Cluster, error) {
	cfg.Dir = os.Getenv("RIG_TEST_DIR")
	cfg.Progress = func(line string) { fmt.Println(line) }
	c, err := Start(context.Background(), cfg)
	if err != nil {
		return nil, err
	}
	paused := c.newDaemon("paused", nil, "sleep", "1000")
	if err := paused.Start(context.Background()); err != nil {
		return nil, err
	}
	if err := paused.Pause(context.Background()); err != nil {
		return nil, err
	}
	for name, script := range map[string]string{
		"stubborn": `trap "" TERM INT HUP; while :; do sleep 1000; done`,
		"parent":   `setsid sleep 1000 & sleep 1000`,
	} {
		if err := c.newDaemon(name, nil, "sh", "-c", script).Start(context.Background()); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// playProvisioner asks the API server what it may do with its login, writes that into its
// log, says that it is ready, and waits for SIGTERM.
func playProvisioner() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	flags := flag.NewFlagSet("provisioner", flag.ContinueOnError)
	kubeconfig := flags.String("kubeconfig", "", "")
	endpoint := flags.String("http-endpoint", "", "")
	verbosity := flags.Int("v", 0, "")
	if err := flags.Parse(os.Args[1:]); err != nil || *verbosity != 4 {
		return fmt.Errorf("arguments are %q: %w", os.Args[1:], err)
	}
	for _, name := range []string{"KUBECONFIG", "CEPH_CONF", "CEPH_ARGS"} {
		if value, set := os.LookupEnv(name); set {
			return fmt.Errorf("%s=%s came in from the caller", name, value)
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for _, resource := range []string{"configmaps", "secrets"} {
		review, err := client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Namespace: os.Getenv("POD_NAMESPACE"), Verb: "get", Resource: resource,
			}},
		}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		fmt.Printf("get %s: %t\n", resource, review.Status.Allowed)
	}
	fmt.Println("extra:", os.Getenv("EXTRA"))
	listener, err := net.Listen("tcp", *endpoint)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {}) // answers with 200
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	<-ctx.Done()
	if err := errors.Join(server.Close(), <-served); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// eventually fails the test unless condition comes true within a minute.
func eventually(t *testing.T, condition func(context.Context) error) {
	t.Helper()
	if err := Eventually(t.Context(), time.Minute, condition); err != nil {
		t.Fatal(err)
	}
}

// nothingLeft returns nil when neither a process nor the folder of a rig is left.
func nothingLeft(dir string) error {
	pids, err := Processes(dir)
	if err != nil {
		return err
	}
	if len(pids) > 0 {
		return fmt.Errorf("processes %v are left", pids)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		left, _ := filepath.Glob(filepath.Join(dir, "*"))
		return errors.Join(fmt.Errorf("folder %s is left, with %v", dir, left), err)
	}
	// Of a Ceph that is not the installed one.
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err == nil && !bytes.Equal(mounts, mountsBefore) {
		err = fmt.Errorf("a mount was made or is gone:\n%s", mounts)
	}
	return err
}
