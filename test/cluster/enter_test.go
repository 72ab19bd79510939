// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A program that hack/ceph/enter.sh runs with the /usr of another Debian can change nothing
// there, and neither the program nor its end by kill -9 leaves a mount, so that whoever
// removes that Debian meanwhile removes nothing of the machine.
func TestEnter(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// The machine's own serves as the other Debian.
	usr := filepath.Join(dir, "root", "usr")
	script, err := os.ReadFile("../../hack/ceph/enter.sh")
	if err := errors.Join(err, os.Mkdir(filepath.Dir(usr), 0o755), os.Mkdir(filepath.Join(dir, "bin"), 0o755), os.Symlink("/usr", usr),
		os.WriteFile(filepath.Join(dir, "bin", "enter"), script, 0o755),
		os.Symlink("enter", filepath.Join(dir, "bin", "id"))); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(dir, "bin", "id"), "-u").CombinedOutput(); err != nil || string(out) != "0\n" {
		t.Errorf("a program by its name: %v: %q", err, out)
	}

	cmd := exec.Command(filepath.Join(dir, "bin", "enter"), "sh", "-c",
		`if touch /usr/new 2>/dev/null; then echo changed; fi; echo "process $$"; exec sleep 1000`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }() // it was killed
	defer func() { _ = cmd.Process.Kill() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	if want := fmt.Sprintf("process %d\n", cmd.Process.Pid); err != nil || line != want {
		t.Errorf("got %q and %v, want %q", line, err, want)
	}
	inside, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", cmd.Process.Pid))
	if err != nil || !strings.Contains(string(inside), " /usr ") || strings.Contains(string(inside), dir) {
		t.Errorf("inside, want /usr and nothing in the folder: %v\n%s", err, inside)
	}
	outside, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(outside), dir) {
		t.Errorf("mounted outside: %v\n%s", err, outside)
	}
}
