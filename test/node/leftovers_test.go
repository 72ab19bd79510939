// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ceph.com/rbd-provisioner/test/cluster"
	"ceph.com/rbd-provisioner/test/node/fixture"
)

// holdVariable makes this test binary start a rig with a node in the folder that it
// names, and hold it until it is killed.
const holdVariable = "RIG_TEST_HOLD"

// hold returns only when it fails.
func hold() error {
	if err := cluster.EnterNamespace(); err != nil {
		return err
	}
	namespace, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return err
	}
	fmt.Println(namespace)
	_, err = cluster.Start(context.Background(), cluster.Config{
		Dir: os.Getenv(holdVariable), Node: true,
		Progress: func(line string) { fmt.Println(line) },
	})
	if err == nil {
		select {}
	}
	return err
}

// TestNothingIsLeft kills a process that has started a rig with a node, while the guest
// starts. No process is left, hence no network namespace and no device.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "rig")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdVariable+"="+dir)
	// In another network namespace than this test's, which it would take for its own.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	namespace := lines.Text()
	if own, err := os.Readlink("/proc/self/ns/net"); err != nil || namespace == own {
		t.Errorf("it runs in %s, as this test does: %v", namespace, err)
	}
	var heard []string
	killed := false
	for lines.Scan() {
		heard = append(heard, lines.Text())
		if !strings.HasPrefix(lines.Text(), "kube-scheduler is ready") {
			continue
		}
		if err := cluster.Eventually(t.Context(), fixture.Patience, func(context.Context) error { return guestRuns(dir) }); err != nil {
			t.Error(err)
		}
		if err := emptyNamespace(namespace); err == nil {
			t.Errorf("no process is in %s", namespace)
		}
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		killed = true
	}
	if err := cmd.Wait(); err == nil || !killed {
		t.Fatalf("ended with %v after %q", err, heard)
	}
	err = cluster.Eventually(t.Context(), fixture.Patience, func(context.Context) error {
		pids, err := cluster.Processes(dir)
		if err == nil && len(pids) > 0 {
			err = fmt.Errorf("processes %v are left", pids)
		}
		if _, statErr := os.Stat(dir); !errors.Is(statErr, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("folder %s is left", dir))
		}
		return errors.Join(err, emptyNamespace(namespace))
	})
	if err != nil {
		t.Error(err)
	}
}

// guestRuns returns nil when one of a rig's processes is qemu.
func guestRuns(dir string) error {
	pids, err := cluster.Processes(dir)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		program, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)) // one that ended is none
		if strings.HasPrefix(filepath.Base(program), "qemu") {
			return nil
		}
	}
	return errors.New("the guest does not run")
}

// emptyNamespace returns nil when no process is in a network namespace.
func emptyNamespace(namespace string) error {
	links, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	for _, link := range links {
		if got, _ := os.Readlink(link); got == namespace { // one that ended is in none
			return fmt.Errorf("%s is in the network namespace of the rig", filepath.Dir(filepath.Dir(link)))
		}
	}
	return nil
}
