// SPDX-License-Identifier: Apache-2.0

// Package faults tests what docs/reliability.md promises, on real servers that
// it kills, halts and restarts: nothing is lost, nothing leaks, nothing stays
// stuck.
//
// A test has a rig of its own while it runs, as it disturbs what it runs on. Few
// rigs run side by side, and one that a test left in order serves the next.
//
// The environment sets how hard it tries: FAULTS_CLAIMS and FAULTS_KILLS are the
// claims that the storms make and how often they kill, FAULTS_SEED repeats the
// random numbers of a run, FAULTS_RIGS is how many rigs run side by side.
// FAULTS_LEASE=default leaves the lease and the OSD's timeout for watchers as
// users have them; they are shortened otherwise. FAULTS_CEPH_VERSION is the release of
// Ceph, in place of CEPH_VERSION.
package faults

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// root is the root folder of the repository.
	root = "../.."
	// program is what "make build" makes.
	program = root + "/bin/rbd-provisioner"
	// namespace and account are those of rbac/.
	namespace = "kube-system"
	account   = "rbd-provisioner"
	// patience bounds each wait. An attempt is repeated after 1, 2, 4, 8 … seconds, so
	// what failed for half a minute may need that long once more.
	patience = 3 * time.Minute
)

// settings are read from the environment.
var settings struct {
	claims, kills int
	seed          uint64
	// asUsersHaveIt says that leases and watchers have their usual times.
	asUsersHaveIt bool
}

// rigs are those that run.
var rigs struct {
	// turn has a place for each rig that may be in use.
	turn chan struct{}

	mu   sync.Mutex // guards idle
	idle []*cluster.Cluster
}

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "faults:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (int, error) {
	if _, err := os.Stat(program); errors.Is(err, fs.ErrNotExist) {
		return 1, errors.New(`there is no bin/rbd-provisioner: run "make build"`)
	}
	var rigCount int
	if err := errors.Join(
		number("FAULTS_CLAIMS", 24, &settings.claims),
		number("FAULTS_KILLS", 3, &settings.kills),
		number("FAULTS_RIGS", 3, &rigCount),
	); err != nil {
		return 1, err
	}
	settings.seed = rand.Uint64()
	if text := os.Getenv("FAULTS_SEED"); text != "" {
		var err error
		if settings.seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			return 1, fmt.Errorf("FAULTS_SEED: %w", err)
		}
	}
	settings.asUsersHaveIt = os.Getenv("FAULTS_LEASE") == "default"
	rigs.turn = make(chan struct{}, rigCount)
	code := m.Run()
	var errs []error
	for _, rig := range rigs.idle {
		errs = append(errs, rig.Stop())
	}
	return code, errors.Join(errs...)
}

// number reads a number above 0 from the environment.
func number(name string, fallback int, into *int) error {
	*into = fallback
	text := os.Getenv(name)
	if text == "" {
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return fmt.Errorf("%s is %q: it must be a number above 0", name, text)
	}
	*into = n
	return nil
}

// random returns the source of a test's random numbers, and logs how to repeat them.
func random(t *testing.T) *rand.Rand {
	t.Logf("random numbers are those of FAULTS_SEED=%d", settings.seed)
	return rand.New(rand.NewPCG(settings.seed, 0))
}

// takeRig waits for a turn and returns a rig for this test alone.
func takeRig(t *testing.T) *cluster.Cluster {
	t.Helper()
	rigs.turn <- struct{}{}
	t.Cleanup(func() { <-rigs.turn })
	rigs.mu.Lock()
	var rig *cluster.Cluster
	if n := len(rigs.idle); n > 0 {
		rig, rigs.idle = rigs.idle[n-1], rigs.idle[:n-1]
	}
	rigs.mu.Unlock()
	if rig == nil {
		rig = startRig(t, cluster.Config{})
	}
	t.Cleanup(func() {
		if t.Failed() {
			endRig(t, rig)
			return
		}
		rigs.mu.Lock()
		defer rigs.mu.Unlock()
		rigs.idle = append(rigs.idle, rig)
	})
	return rig
}

// startRig starts a rig with the account of rbac/.
func startRig(t *testing.T, cfg cluster.Config) *cluster.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cfg.CephVersion = os.Getenv("FAULTS_CEPH_VERSION")
	rig, err := cluster.Start(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	rbac, err := filepath.Abs(filepath.Join(root, "rbac"))
	if err == nil {
		_, err = rig.Kube.Kubectl(ctx, "", "apply", "-f", rbac)
	}
	if err == nil && rig.Ceph != nil && !settings.asUsersHaveIt {
		// A client that was killed counts as a watcher for this long instead of half a
		// minute. A live client is heard of every 5 s.
		_, err = rig.Ceph.Run(ctx, "ceph", "config", "set", "osd", "osd_client_watch_timeout", "12")
	}
	if err != nil {
		t.Error(err)
		endRig(t, rig)
		t.FailNow()
	}
	return rig
}

// endRig stops a rig. If the test failed, it shows the logs.
func endRig(t *testing.T, rig *cluster.Cluster) {
	if t.Failed() {
		rig.DumpLogs(os.Stderr)
	}
	if err := rig.Stop(); err != nil {
		t.Error(err)
	}
}
