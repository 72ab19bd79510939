// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUpAndDown(t *testing.T) {
	t.Chdir("../..") // where make runs it
	dir := filepath.Join(t.TempDir(), "demo")
	var out strings.Builder
	// Not detached: if this test is killed, the demo ends with it.
	c, err := start(t.Context(), &out, dir, false)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			_ = c.Stop() // the test has failed already
		}
	})
	for _, want := range []string{
		"rbd-claim   Bound", "features: layering\n", "export KUBECONFIG=" + c.Kube.Kubeconfig,
		"export CEPH_CONF=" + c.Ceph.Conf, "make demo NODE=1", "make demo-down",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}

	out.Reset()
	if err := up(t.Context(), &out, dir, false); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"running already", "export KUBECONFIG=" + c.Kube.Kubeconfig} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("a second one does not say %q:\n%s", want, out.String())
		}
	}

	stopped = true
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
	out.Reset()
	if err := down(&out, dir); err != nil || !strings.Contains(out.String(), "not running") {
		t.Errorf("down with nothing running: %v, %q", err, out.String())
	}
}

// After a power cut, the folder is left and none of its processes.
func TestAfterAReboot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "demo")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "rig"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if running, err := alreadyUp(&strings.Builder{}, dir); running || err != nil {
		t.Errorf("running %t, error %v", running, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

func TestWhileAnotherStarts(t *testing.T) {
	cache := t.TempDir()
	unlock, err := lock(cache)
	if err != nil {
		t.Fatal(err)
	}
	err = up(t.Context(), &strings.Builder{}, filepath.Join(cache, "demo"), false)
	if err == nil || !strings.Contains(err.Error(), "is starting") {
		t.Errorf("while another starts: %v", err)
	}
	unlock()
	unlock, err = lock(cache)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"-node"}, {"up", "down"}, {"up", "-node", "more"}, {"down", "-node"}} {
		if err := run(t.Context(), &strings.Builder{}, args); err == nil || !strings.Contains(err.Error(), "usage") {
			t.Errorf("%q: got %v, want the usage", args, err)
		}
	}
}
