// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// emptyRig has no servers: a place for processes of the test's own.
func emptyRig(t *testing.T) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), Config{SkipCeph: true, SkipKubernetes: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, c) })
	return c
}

func TestDaemon(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := emptyRig(t)
	d := c.newDaemon("loop", []string{"WORD=hello"}, "sh", "-c", `trap 'exit 0' TERM; echo "$WORD"; sleep 1000 & wait`)
	greetings := 0
	d.ready = func(context.Context) error {
		if text, err := os.ReadFile(d.Log); strings.Count(string(text), "hello") <= greetings {
			return errors.Join(errors.New("it has not spoken"), err)
		}
		greetings++
		return nil
	}
	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(ctx); err == nil {
		t.Error("started twice")
	}
	first := d.PID()
	if err := d.Pause(ctx); err != nil {
		t.Error(err)
	}
	if err := halted(first); err != nil {
		t.Errorf("after Pause: %v", err)
	}
	if err := d.Resume(); err != nil {
		t.Error(err)
	}
	eventually(t, func(context.Context) error {
		if halted(first) == nil {
			return errors.New("it does not go on")
		}
		return nil
	})
	if err := d.Pause(ctx); err != nil {
		t.Error(err)
	}
	if err := d.Restart(ctx); err != nil {
		t.Errorf("restart of a paused process: %v", err)
	}
	if d.PID() == first || d.ExitCode() != -1 {
		t.Errorf("after Restart: process %d as before, exit code %d", d.PID(), d.ExitCode())
	}
	if err := d.Pause(ctx); err != nil {
		t.Error(err)
	}
	d.Kill()
	select {
	case <-d.Done():
	default:
		t.Error("Kill returned before the end")
	}
	if err := d.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(); err != nil || d.ExitCode() != 0 {
		t.Errorf("Stop: %v, exit code %d", err, d.ExitCode())
	}
	if greetings != 3 {
		t.Errorf("%d runs in the log, want 3", greetings)
	}
}

func TestDaemonThatEnds(t *testing.T) {
	t.Parallel()
	c := emptyRig(t)
	d := c.newDaemon("brief", nil, "sh", "-c", "echo no such luck; exit 7")
	d.ready = func(context.Context) error { return errors.New("no answer") }
	begin := time.Now()
	err := d.Start(t.Context())
	if err == nil {
		t.Fatal("started")
	}
	for _, want := range []string{"brief", "no such luck", "exit status 7", "no answer"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if took := time.Since(begin); took > startLimit/2 {
		t.Errorf("waited %s for a process that had ended", took)
	}
	if d.ExitCode() != 7 {
		t.Errorf("exit code %d, want 7", d.ExitCode())
	}
	if err := d.Stop(); err == nil {
		t.Error("Stop does not tell that it had ended")
	}
	var logs strings.Builder
	c.DumpLogs(&logs)
	for _, want := range []string{"=== brief (ended: exit status 7)", "no such luck"} {
		if !strings.Contains(logs.String(), want) {
			t.Errorf("%q does not say %q", logs.String(), want)
		}
	}
}

func TestPortsAreNotSharedAndNotEphemeral(t *testing.T) {
	t.Parallel()
	var one, two ports
	defer one.close()
	defer two.close()
	low, high := ephemeralPorts()
	seen := map[int]bool{}
	for range 50 {
		for _, p := range []*ports{&one, &two} {
			port, err := p.reserve()
			if err != nil {
				t.Fatal(err)
			}
			if seen[port] {
				t.Errorf("port %d was given twice", port)
			}
			if port >= low && port <= high {
				t.Errorf("port %d is one for outgoing connections", port)
			}
			seen[port] = true
		}
	}
}

func TestEventually(t *testing.T) {
	t.Parallel()
	notYet := errors.New("not yet")
	if err := Eventually(t.Context(), 0, func(context.Context) error { return nil }); err != nil {
		t.Error(err)
	}
	err := Eventually(t.Context(), time.Millisecond, func(context.Context) error { return notYet })
	if !errors.Is(err, notYet) || !strings.Contains(err.Error(), "not within 1ms") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	err = Eventually(ctx, time.Minute, func(context.Context) error {
		cancel(errors.New("changed my mind"))
		return notYet
	})
	if !errors.Is(err, notYet) || !strings.Contains(err.Error(), "changed my mind") {
		t.Errorf("got %v", err)
	}
}

func TestMissingPrograms(t *testing.T) {
	empty := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", empty)
	t.Setenv("KUBEBUILDER_ASSETS", "")
	t.Setenv("PATH", empty)
	tests := []struct {
		name, version, environment, want string
	}{
		{"by default", "", "", `run "make kubernetes"`},
		{"named in the environment", "", "1.36.3", `run "K8S_VERSION=1.36.3 make kubernetes"`},
		{"the argument wins", "v1.31.0", "1.36.3", `run "K8S_VERSION=1.31.0 make kubernetes"`},
		{"etcd too", "", "", `run "make deps"`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Setenv("K8S_VERSION", test.environment)
			_, err := Start(t.Context(), Config{KubernetesVersion: test.version})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}

func TestAssetsWin(t *testing.T) {
	cache, assets := t.TempDir(), t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("KUBEBUILDER_ASSETS", assets)
	built := filepath.Join(cache, "rbd-provisioner", "kubernetes", "v1.30.14")
	for _, path := range []string{
		filepath.Join(built, "kube-apiserver"),
		filepath.Join(built, "kubectl"),
		filepath.Join(built, "kube-controller-manager"),
		filepath.Join(assets, "kube-apiserver"),
		filepath.Join(assets, "kubectl"),
		filepath.Join(assets, "etcd"),
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := findPrograms("1.30.14")
	if err != nil {
		t.Fatal(err)
	}
	want := programs{
		etcd:              filepath.Join(assets, "etcd"),
		apiserver:         filepath.Join(assets, "kube-apiserver"),
		kubectl:           filepath.Join(assets, "kubectl"),
		controllerManager: filepath.Join(built, "kube-controller-manager"),
		version:           "1.30.14",
		cache:             filepath.Join(cache, "rbd-provisioner"),
	}
	if *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(strings.Repeat("x\n", 100_000)+"a\nb\nc\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := tail(path, 2), "b\nc\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
