// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the whole: a real Ceph, a real control plane, and the
// provisioner as a process that has exactly the rights of rbac/.
//
// One rig serves all tests. Each test has a namespace, a pool and classes of its
// own, so that they can run side by side; those that disturb the provisioner
// itself do not call t.Parallel, and so run alone. When a test ends, its claims
// are deleted, and its pool must then hold just the images that volumes name.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// root is the root folder of the repository.
	root = "../.."
	// binary is what "make build" makes.
	binary = root + "/bin/rbd-provisioner"
	// namespace and account are those of rbac/.
	namespace = "kube-system"
	account   = "rbd-provisioner"
	// patience bounds each wait; an idle machine needs a moment.
	patience = 90 * time.Second
)

// rig is what all tests share. It is set before the first one runs.
var rig struct {
	*cluster.Cluster
	// main is the provisioner of ceph.com/rbd that all tests share.
	main *cluster.Provisioner

	mu sync.Mutex // guards what follows
	// keys are all Ceph keys that were used: none may show anywhere.
	keys []string
	// seen is what provisioners showed while they ran, by kind.
	seen map[string]string
}

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	defer cancel()
	if _, err := os.Stat(binary); errors.Is(err, fs.ErrNotExist) {
		return 1, errors.New(`there is no bin/rbd-provisioner: run "make build"`)
	}
	rig.Cluster, err = cluster.Start(ctx, cluster.Config{})
	if err != nil {
		return 1, err
	}
	defer func() {
		if code != 0 || err != nil {
			rig.DumpLogs(os.Stderr)
		}
		err = errors.Join(err, rig.Stop())
	}()
	if _, err := rig.Kube.Kubectl(ctx, "", "apply", "-f", checkout("rbac")); err != nil {
		return 1, err
	}
	if rig.main, err = startProvisioner(ctx, nil); err != nil {
		return 1, err
	}
	code = m.Run()
	if err := look(ctx, rig.main); err != nil {
		return code, err
	}
	return code, noKeyAnywhere(ctx)
}

// checkout returns the absolute path of a file in the repository: kubectl runs elsewhere.
func checkout(elem ...string) string {
	path, err := filepath.Abs(filepath.Join(append([]string{root}, elem...)...))
	if err != nil {
		panic(err) // this process has no working directory
	}
	return path
}

// startProvisioner runs a provisioner as the account of rbac/ and waits until it
// is ready.
func startProvisioner(ctx context.Context, env []string, args ...string) (*cluster.Provisioner, error) {
	return rig.StartProvisioner(ctx, cluster.ProvisionerConfig{
		Binary: binary,
		Args: append([]string{
			// At the highest verbosity, so that the search for keys in the logs
			// finds what may hold one.
			"-v=10",
			"-command-timeout=5",
		}, args...),
		Env:            env,
		Namespace:      namespace,
		ServiceAccount: account,
	})
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
	var body bytes.Buffer
	_, err = body.ReadFrom(answer.Body)
	if err := errors.Join(err, answer.Body.Close()); err != nil {
		return "", err
	}
	if answer.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s: %s", url, answer.Status, body.String())
	}
	return body.String(), nil
}
