// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// outputChildEnv makes this program a child of testOutput.
const outputChildEnv = "GOCEPH_OUTPUT_CHILD"

// outputAttempt is a connection that the child of testOutput tries to make.
type outputAttempt struct {
	Monitor, User, Key string
}

// testOutput runs a process that connects with keys that librados refuses, in an
// environment that asks librados for output. It checks that the process prints nothing and
// leaves no files.
func (c *ceph) testOutput(t *testing.T) {
	live, dead := c.admin.Monitors[0], "v1:127.0.0.1:1"
	wrong := rbdtest.NewKey().Reveal()
	// Keys of types that no librados knows, and not every one.
	unknown, later := rbdtest.NewKeyOfType(0x63, 16).Reveal(), rbdtest.NewAES256KKey().Reveal()
	attempts := []outputAttempt{
		{live, "admin", c.admin.Key.Reveal()},
		{live, "admin", wrong}, {live, "nobody", wrong}, {live, "admin", unknown}, {live, "admin", later},
		{dead, "admin", wrong}, {"v2:" + c.rig.MonitorV2, "admin", wrong}, {c.rig.MonitorV1, "admin", wrong}, {c.rig.MonitorV2, "admin", wrong},
		{"monitor.invalid", "admin", wrong}, {"127.0.0.1:port", "admin", wrong}, {"", "admin", wrong}, {live, "", wrong},
	}
	input, err := json.Marshal(attempts)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		outputChildEnv+"=1",
		"CEPH_CONF="+c.rig.Conf,
		"CEPH_KEYRING="+c.rig.Keyring,
		"CEPH_ARGS=--log-to-stderr=true --err-to-stderr=true --debug-auth=20 --debug-monc=20 --debug-ms=1 --log-file="+dir+"/log --admin-socket="+dir+"/socket --client-mount-timeout=300",
	)
	cmd.Stdin = bytes.NewReader(input)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out.String(), errOut.String())
	}
	if errOut.Len() > 0 {
		t.Errorf("standard error has:\n%s", errOut.String())
	}
	for _, a := range attempts {
		if a.Key != "" && strings.Contains(out.String()+errOut.String(), a.Key) {
			t.Errorf("a key of user %q for monitor %q is in the output:\n%s%s", a.User, a.Monitor, out.String(), errOut.String())
		}
	}
	if got, want := out.String(), "CONNECTED 1 TIMES\n"; got != want {
		t.Errorf("standard output has:\n%s\nwant:\n%s", got, want)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Errorf("the process left the file %s", f.Name())
	}
}

// TestMain lets testOutput run this program as its child.
func TestMain(m *testing.M) {
	if os.Getenv(outputChildEnv) == "" {
		os.Exit(m.Run())
	}
	if err := outputChild(context.Background()); err != nil {
		_, _ = fmt.Fprintln(os.Stdout, err)
		os.Exit(1)
	}
}

// outputChild makes the attempts in its input and prints how many connected.
func outputChild(ctx context.Context) error {
	var attempts []outputAttempt
	if err := json.NewDecoder(os.Stdin).Decode(&attempts); err != nil {
		return err
	}
	c, err := New(Config{Timeout: 3 * time.Second})
	if err != nil {
		return err
	}
	c.log = logr.Discard() // this is about what librados prints
	errs := make([]error, len(attempts))
	var connected atomic.Int64
	var wg sync.WaitGroup
	for i, a := range attempts {
		wg.Go(func() {
			key, err := rbd.ParseKey(a.Key)
			if err != nil {
				errs[i] = err
				return
			}
			cluster, err := c.Connect(ctx, rbd.Credentials{Monitors: []string{a.Monitor}, User: a.User, Key: key})
			if err == nil {
				connected.Add(1)
				cluster.Close()
			} else if strings.Contains(err.Error(), a.Key) {
				errs[i] = errors.New("an error shows the key")
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errors.Join(errs...), c.Close(ctx)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(os.Stdout, "CONNECTED %d TIMES\n", connected.Load())
	return err
}
