// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bufio"
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

//go:embed reaper.sh
var reaperScript string

// launchScript starts every process of a rig, unless the reaper has begun. The folder is
// $0.
const launchScript = `if [ -d "$0" ] && [ ! -e "$0/reaping" ]; then exec "$@"; fi; exit 125`

// folder is the place of one rig on disk, together with the process that removes it.
type folder struct {
	dir    string
	reaper *exec.Cmd
	pipe   io.WriteCloser // the reaper acts when this closes, however it closes
}

// mark is the environment variable by which the processes of a rig are known.
func mark(dir string) string { return "RBD_PROVISIONER_RIG=" + dir }

// newFolder makes dir, which must not exist, and starts its reaper. The reaper makes the
// folder, so that it never exists without one.
func newFolder(dir string) (*folder, error) {
	cmd := reaper(dir, "make")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the reaper: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the reaper: %w", err)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the reaper: %w", err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "made\n" {
		_ = in.Close()
		waitErr := cmd.Wait()
		return nil, fmt.Errorf("make folder %s: %s: %w", dir, strings.TrimSpace(complaint.String()), errors.Join(err, waitErr))
	}
	return &folder{dir: dir, reaper: cmd, pipe: in}, nil
}

func reaper(dir, verb string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", reaperScript, "reaper", dir, mark(dir), verb)
	// Without the mark, or it would kill itself. In a session of its own, so that neither
	// ctrl-C nor a kill of the process group reaches it.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	return cmd
}

// remove kills what still runs of the rig and removes the folder.
func (f *folder) remove() error {
	_ = f.pipe.Close() // closing is the message; a reaper that is gone shows below
	err := f.reaper.Wait()
	if _, statErr := os.Stat(f.dir); !errors.Is(statErr, os.ErrNotExist) {
		return fmt.Errorf("remove folder %s: %w", f.dir, errors.Join(errors.New("it is still there"), err))
	}
	return nil
}

// detach ends the reaper and leaves folder and processes as they are.
func (f *folder) detach() error {
	_, err := io.WriteString(f.pipe, "detach\n")
	if err = errors.Join(err, f.pipe.Close(), f.reaper.Wait()); err != nil {
		return fmt.Errorf("detach from %s: %w", f.dir, err)
	}
	return nil
}

// command prepares a process of the rig: with the mark, in a session of its own (so that
// ctrl-C in a terminal does not reach it, but signals to its group do), and without
// variables of ours except PATH.
func (f *folder) command(env []string, path string, args ...string) *exec.Cmd {
	cmd := exec.Command("sh", append([]string{"-c", launchScript, f.dir, path}, args...)...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.dir, "LC_ALL=C.UTF-8", mark(f.dir)}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// Remove ends a detached rig: it kills all its processes and removes its folder. It is no
// error if there is no folder. A folder that is no rig's is an error and stays as it is.
func Remove(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, err := os.Stat(filepath.Join(dir, "rig")); err != nil {
		return fmt.Errorf("remove %s: not the folder of a rig: %w", dir, err)
	}
	out, err := reaper(dir, "sweep").CombinedOutput()
	if _, statErr := os.Stat(dir); !errors.Is(statErr, os.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", dir, errors.Join(errors.New("it is still there"), err, errors.New(string(out))))
	}
	return nil
}

// Processes returns the IDs of the running processes that belong to the rig in dir,
// whatever started them.
func Processes(dir string) ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	want := []byte(mark(dir))
	var pids []int
	for _, entry := range entries {
		// Processes may end meanwhile, and those of other users can't be read: neither
		// are ours.
		environ, err := os.ReadFile(entry)
		if err != nil {
			continue
		}
		for variable := range bytes.SplitSeq(environ, []byte{0}) {
			if bytes.Equal(variable, want) {
				var pid int
				if _, err := fmt.Sscanf(entry, "/proc/%d/", &pid); err == nil {
					pids = append(pids, pid)
				}
				break
			}
		}
	}
	return pids, nil
}
