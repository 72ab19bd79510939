// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
)

// run runs a command of the rig to its end and returns its standard output. Its error has
// what the command wrote to standard error. When ctx ends, the command is killed.
func (f *folder) run(ctx context.Context, stdin io.Reader, env []string, path string, args ...string) (string, error) {
	what := strings.Join(append([]string{filepath.Base(path)}, args...), " ")
	var out, complaint bytes.Buffer
	cmd := f.command(env, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &complaint
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // it may have ended just now
		err = errors.Join(context.Cause(ctx), <-done)
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", what, err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}
