// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// stopGrace is how long a daemon may take to end after SIGTERM. Each of them
	// ends within three seconds on an idle machine.
	stopGrace = 30 * time.Second
	// startLimit bounds the wait for a daemon to answer. That takes seconds, unless a
	// machine is overloaded or a daemon broken.
	startLimit = 2 * time.Minute
)

// Daemon is one server of the rig: a process in a process group of its own, which can be
// stopped, killed, paused and started again with the same arguments. Several goroutines
// may call its methods, but must agree on the order of what they do to one process.
type Daemon struct {
	// Name is unique within the rig, as "osd.0" or "kube-apiserver".
	Name string
	// Log is the file that receives standard output and standard error, of all
	// its runs.
	Log string

	folder *folder
	path   string
	args   []string
	env    []string
	// ready is called until it returns nil; if it is nil, starting is enough.
	ready func(context.Context) error
	// limit bounds the wait for it; zero is startLimit.
	limit time.Duration
	// logs are further files that it writes to, shown with its log.
	logs []string
	// end is the signal by which Stop ends it; zero is SIGTERM.
	end syscall.Signal
	// gentle daemons get a SIGTERM before the rig is removed.
	gentle bool

	mu  sync.Mutex // guards run
	run *run
}

// run is one process.
type run struct {
	cmd  *exec.Cmd
	done chan struct{} // closed after err is set
	err  error
}

func (d *Daemon) current() *run {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.run
}

// PID is the id of the present process, or of the last one when it has ended.
func (d *Daemon) PID() int { return d.current().cmd.Process.Pid }

// Done is closed when the present process has ended.
func (d *Daemon) Done() <-chan struct{} { return d.current().done }

// ExitCode returns how the process ended: -1 while it runs, and when a signal ended it.
func (d *Daemon) ExitCode() int {
	r := d.current()
	select {
	case <-r.done:
		return r.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// Start starts an ended daemon again, with the same arguments, and waits until it is
// ready.
func (d *Daemon) Start(ctx context.Context) error {
	if r := d.current(); r != nil && !r.ended() {
		return fmt.Errorf("start %s: it runs already, as process %d", d.Name, r.cmd.Process.Pid)
	}
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	cmd := d.folder.command(d.env, d.path, d.args...)
	cmd.Dir = d.folder.dir // what it drops goes with the rig
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Start()
	_ = log.Close() // the process has its own copy
	if err != nil {
		return fmt.Errorf("start %s: %w", d.Name, err)
	}
	r := &run{cmd: cmd, done: make(chan struct{})}
	// Ends with the process, which Stop, Kill or the reaper ends.
	go func() {
		r.err = cmd.Wait()
		close(r.done)
	}()
	d.mu.Lock()
	d.run = r
	d.mu.Unlock()
	return d.waitReady(ctx, r)
}

func (d *Daemon) waitReady(ctx context.Context, r *run) error {
	if d.ready == nil {
		return nil
	}
	// A daemon that has ended never answers: do not wait for the limit.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	finished := make(chan struct{})
	defer close(finished)
	go func() {
		select {
		case <-r.done:
			cancel(fmt.Errorf("it ended: %w", ended(r)))
		case <-finished:
		}
	}()
	if err := Eventually(ctx, cmp.Or(d.limit, startLimit), d.ready); err != nil {
		return fmt.Errorf("wait for %s to be ready: %w\n%s", d.Name, err, d.tails(20))
	}
	return nil
}

func (r *run) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

// ended describes how a process ended that was not asked to.
func ended(r *run) error {
	if r.err != nil {
		return r.err
	}
	return errors.New("exit status 0")
}

// Stop ends the process with SIGTERM (kube-apiserver with SIGKILL), paused or not, and
// waits until it has ended. It is an error if the process ends with a status other than
// 0, had ended on its own before, or had to be killed because SIGTERM did not end it
// within half a minute. The process has ended in any case.
func (d *Daemon) Stop() error {
	r := d.current()
	if r.ended() {
		return fmt.Errorf("stop %s: it had ended by itself: %w", d.Name, ended(r))
	}
	end := cmp.Or(d.end, syscall.SIGTERM)
	d.signal(r, end)
	d.signal(r, syscall.SIGCONT) // a paused process sees SIGTERM only then
	select {
	case <-r.done:
	case <-time.After(stopGrace):
		d.signal(r, syscall.SIGKILL)
		<-r.done
		return fmt.Errorf("stop %s: killed, SIGTERM had not ended it after %s", d.Name, stopGrace)
	}
	if status, ok := r.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == end {
		return nil // as etcd does once it has shut down
	}
	if r.err != nil {
		return fmt.Errorf("stop %s: %w", d.Name, r.err)
	}
	return nil
}

// Kill ends the process with SIGKILL, paused or not, and waits until it has ended. A
// process that had ended is no error.
func (d *Daemon) Kill() {
	r := d.current()
	d.signal(r, syscall.SIGKILL)
	<-r.done
}

// Restart stops the daemon, starts it with the same arguments and waits until
// it is ready.
func (d *Daemon) Restart(ctx context.Context) error {
	if err := d.Stop(); err != nil {
		return err
	}
	return d.Start(ctx)
}

// Pause halts the process with SIGSTOP, as if its machine hung: it keeps its memory, its
// connections and its ports, and does nothing. When Pause returns, all its threads are
// halted.
func (d *Daemon) Pause(ctx context.Context) error {
	r := d.current()
	if r.ended() {
		return fmt.Errorf("pause %s: it has ended", d.Name)
	}
	d.signal(r, syscall.SIGSTOP)
	if err := Eventually(ctx, stopGrace, func(context.Context) error { return halted(r.cmd.Process.Pid) }); err != nil {
		return fmt.Errorf("pause %s: %w", d.Name, err)
	}
	return nil
}

// Resume lets a paused process continue.
func (d *Daemon) Resume() error {
	r := d.current()
	if r.ended() {
		return fmt.Errorf("resume %s: it has ended", d.Name)
	}
	d.signal(r, syscall.SIGCONT)
	return nil
}

// signal signals the process and its children. There may be none: processes end at any
// time, and every caller looks at done.
func (d *Daemon) signal(r *run, sig syscall.Signal) {
	if !r.ended() {
		_ = syscall.Kill(-r.cmd.Process.Pid, sig)
	}
}

// halted returns nil when every thread of a process is stopped.
func halted(pid int) error {
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return err
	}
	if len(stats) == 0 {
		return fmt.Errorf("process %d is gone", pid)
	}
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // that thread has ended
		}
		// "pid (name) state ...", and the name may have any characters.
		after := bytes.TrimSpace(text[bytes.LastIndexByte(text, ')')+1:])
		if len(after) == 0 || after[0] != 'T' {
			return fmt.Errorf("%s is not stopped yet", stat)
		}
	}
	return nil
}

// Tail returns the last lines of the log that are not empty.
func (d *Daemon) Tail(lines int) string { return tail(d.Log, lines) }

// tails returns the last lines of each log.
func (d *Daemon) tails(lines int) string {
	text := tail(d.Log, lines)
	for _, log := range d.logs {
		text += "--- " + filepath.Base(log) + "\n" + tail(log, lines)
	}
	return text
}

// tail returns the last lines of a file that are not empty, or why it can't.
func tail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error() + "\n"
	}
	defer func() { _ = f.Close() }() // only read
	const most = 64 << 10
	info, err := f.Stat()
	if err != nil {
		return err.Error() + "\n"
	}
	text := make([]byte, min(info.Size(), most))
	// If a log shrank meanwhile, that needs no message.
	n, _ := f.ReadAt(text, info.Size()-int64(len(text)))
	var last []string
	for line := range strings.Lines(string(text[:n])) {
		if line = strings.TrimRight(line, "\n"); line != "" {
			last = append(last, line+"\n")
		}
	}
	return strings.Join(last[max(0, len(last)-lines):], "")
}
