// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestNothingIsLeft ends processes that own a rig in each way in which a test can end.
func TestNothingIsLeft(t *testing.T) {
	tests := []struct {
		name, role string
		// seen is the line of output at which signal is sent.
		seen   string
		signal syscall.Signal
	}{
		{"a panic", "panic", "", 0},
		{"ctrl-C, which goes to the whole process group", "small", "ready", syscall.SIGINT},
		{"kill -9 of the process group", "small", "ready", syscall.SIGKILL},
		{"kill -9 while servers start", "whole", "mon.a is ready", syscall.SIGKILL},
		{"kill -9 of a whole rig with a paused OSD", "whole", "ready", syscall.SIGKILL},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "rig")
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), roleVariable+"="+test.role, "RIG_TEST_DIR="+dir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			var complaint bytes.Buffer
			cmd.Stderr = &complaint
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var heard []string
			sent := false
			for lines := bufio.NewScanner(out); lines.Scan(); {
				heard = append(heard, lines.Text())
				if test.seen != "" && strings.HasPrefix(lines.Text(), test.seen) {
					if pids, err := Processes(dir); err != nil || len(pids) == 0 {
						t.Errorf("no process runs before the end: %v", err)
					}
					if err := syscall.Kill(-cmd.Process.Pid, test.signal); err != nil {
						t.Error(err)
					}
					sent = true
				}
			}
			if err := cmd.Wait(); err == nil || sent != (test.seen != "") {
				t.Errorf("ended with %v after %q\n%s", err, heard, complaint.String())
			}
			if test.role == "panic" && !strings.Contains(complaint.String(), "as a test does") {
				t.Errorf("did not panic: %s", complaint.String())
			}
			eventually(t, func(context.Context) error { return nothingLeft(dir) })
		})
	}
}

func TestNothingIsLeftOfAFailedStart(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "rig")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := Start(ctx, Config{Dir: dir, Progress: func(line string) {
		if strings.HasPrefix(line, "etcd is ready") {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if err := nothingLeft(dir); err != nil {
		t.Error(err)
	}
}

func TestDetachedRig(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "rig")
	c, err := Start(t.Context(), Config{Dir: dir, SkipCeph: true, SkipKubernetes: true})
	if err != nil {
		t.Fatal(err)
	}
	d := c.newDaemon("sleep", nil, "sleep", "1000")
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Detach(); err != nil {
		t.Fatal(err)
	}
	if pids, err := Processes(dir); err != nil || len(pids) != 1 || pids[0] != d.PID() {
		t.Errorf("after Detach: processes %v, error %v, want %d", pids, err, d.PID())
	}
	if _, err := Start(t.Context(), Config{Dir: dir, SkipCeph: true, SkipKubernetes: true}); err == nil {
		t.Error("a second rig started in the same folder")
	}
	if err := Remove(dir); err != nil {
		t.Error(err)
	}
	if err := nothingLeft(dir); err != nil {
		t.Error(err)
	}
	if err := Remove(dir); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
}

func TestRemoveLeavesOtherFoldersAlone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := Remove(dir); err == nil {
		t.Error("removed a folder that is no rig's")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}
