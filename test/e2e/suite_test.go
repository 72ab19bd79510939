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
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// root is the checkout.
	root = "../.."
	// binary is what "make build" makes.
	binary = root + "/bin/rbd-provisioner"
	// namespace and account are those of rbac/.
	namespace = "kube-system"
	account   = "rbd-provisioner"
	// patience bounds each wait; it is met in a moment on an idle machine.
	patience = 90 * time.Second
)

// rig is what all tests share. It is set before the first one runs.
var rig struct {
	*cluster.Cluster
	// main is the provisioner of ceph.com/rbd.
	main *cluster.Provisioner

	mu sync.Mutex // guards keys
	// keys are all Ceph keys that were used: none may show anywhere.
	keys []string
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
	return code, noKeyAnywhere(ctx)
}

// checkout is the absolute path of something in the checkout: kubectl runs
// elsewhere.
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

// useKey notes a key, to be searched for at the end.
func useKey(key string) {
	rig.mu.Lock()
	defer rig.mu.Unlock()
	rig.keys = append(rig.keys, key)
}

// noKeyAnywhere searches all that the provisioners left in logs and events for
// each key that was used.
func noKeyAnywhere(ctx context.Context) error {
	found := map[string]string{}
	events, err := rig.Kube.Kubectl(ctx, "", "get", "events,persistentvolumes", "-A", "-o", "yaml")
	if err != nil {
		return err
	}
	found["the events and volumes"] = events
	logs, err := filepath.Glob(filepath.Join(rig.Dir, "log", "provisioner-*.log"))
	if err != nil || len(logs) == 0 {
		return fmt.Errorf("found no logs of provisioners: %w", err)
	}
	for _, log := range logs {
		text, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		found[log] = string(text)
	}
	rig.mu.Lock()
	keys := slices.Compact(slices.Sorted(slices.Values(rig.keys)))
	rig.mu.Unlock()
	var errs []error
	for where, text := range found {
		dumped := dumpedBytes(text)
		for _, key := range keys {
			if before, _, found := strings.Cut(text, key); found {
				errs = append(errs, fmt.Errorf("a key stands in %s, behind %q", where, before[max(0, len(before)-200):]))
			}
			if strings.Contains(dumped, key) {
				errs = append(errs, fmt.Errorf("a key is dumped in %s", where))
			}
		}
	}
	return errors.Join(errs...)
}

// dumpedBytes puts together what a log has as dumps of bytes, 16 in a line,
// which is how client-go logs the bodies of answers.
func dumpedBytes(text string) string {
	var all strings.Builder
	for _, line := range dumpLine.FindAllStringSubmatch(text, -1) {
		all.WriteString(line[1])
	}
	return all.String()
}

// dumpLine is the end of a line of hex.Dump.
var dumpLine = regexp.MustCompile(`(?m)\|(.{1,16})\|$`)
