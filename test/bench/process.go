// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// tick is the resolution of a process's CPU time (USER_HZ).
	tick = 10 * time.Millisecond
	// sampling is how often the memory of a process and its children is read.
	sampling = 20 * time.Millisecond
	// calm is how long a settled process has sent no request and used hardly any CPU. The
	// provisioner clears its journal once a second.
	calm = 1500 * time.Millisecond
	// asking is how often the process is asked whether it is settled.
	asking = 500 * time.Millisecond
)

// process is a running contender.
type process struct {
	*cluster.Provisioner
	say func(string)
	// settling is how long to wait until it is settled: on an overloaded machine, asking
	// alone costs more than a settled process may use.
	settling     time.Duration
	stopSampling context.CancelFunc
	sampled      chan struct{} // closed after family was written last
	// family is the highest sum of the resident memory of the process and its
	// children, in bytes.
	family int64
}

// watchProcess begins to sample the memory of the process and its children, if it may
// have some. For a single process, the kernel keeps the peak.
func (b *bench) watchProcess(p *cluster.Provisioner, children bool) *process {
	ctx, cancel := context.WithCancel(context.Background())
	w := &process{Provisioner: p, say: b.say, settling: b.Settling, stopSampling: cancel, sampled: make(chan struct{})}
	go func() {
		defer close(w.sampled)
		if !children {
			return
		}
		ticker := time.NewTicker(sampling)
		defer ticker.Stop()
		for {
			w.family = max(w.family, familyMemory(p.PID()))
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
	return w
}

// stop ends the process and returns its peak of resident memory, in bytes.
func (p *process) stop() (int64, error) {
	p.stopSampling()
	<-p.sampled
	peak, err := statusBytes(p.PID(), "VmHWM")
	return max(peak, p.family), errors.Join(err, p.Stop())
}

// familyMemory adds up the resident memory of a process and its children. Pages that they
// share count for each. Children that end meanwhile do not count.
func familyMemory(pid int) int64 {
	sum, err := statusBytes(pid, "VmRSS")
	if err != nil {
		return 0
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return sum
	}
	for _, task := range tasks {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, task.Name()))
		if err != nil {
			continue
		}
		for child := range strings.FieldsSeq(string(children)) {
			if n, err := strconv.Atoi(child); err == nil {
				sum += familyMemory(n)
			}
		}
	}
	return sum
}

// statusBytes reads one size of /proc/PID/status.
func statusBytes(pid int, field string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		if name == field {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, field)
}

// usage is what a process has used since its start.
type usage struct {
	// cpu is user and system time, with that of children that have ended.
	cpu time.Duration
	// requests went to the API server; leases are those among them that renewed a lease
	// (the only PUT requests of a provisioner, which updates nothing else).
	requests, leases float64
	// kinds are the requests by method and status.
	kinds map[string]float64
}

func (u usage) since(before usage) usage {
	kinds := map[string]float64{}
	for kind, n := range u.kinds {
		if n -= before.kinds[kind]; n > 0 {
			kinds[kind] = n
		}
	}
	return usage{
		// Not nothing, but less than can be measured.
		cpu:      max(u.cpu-before.cpu, tick),
		requests: u.requests - before.requests,
		leases:   u.leases - before.leases,
		kinds:    kinds,
	}
}

func (p *process) usage(ctx context.Context) (usage, error) {
	var u usage
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return u, err
	}
	if u.cpu, err = parseCPU(text); err != nil {
		return u, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/metrics", nil)
	if err != nil {
		return u, err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return u, err
	}
	defer func() { _ = answer.Body.Close() }() // only read
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	if err != nil {
		return u, fmt.Errorf("%s: %w", request.URL, err)
	}
	family := families["rest_client_requests_total"]
	if family == nil {
		return u, fmt.Errorf("%s does not count requests", request.URL)
	}
	u.kinds = map[string]float64{}
	for _, metric := range family.GetMetric() {
		u.requests += metric.GetCounter().GetValue()
		u.kinds[label(metric, "method")+" "+label(metric, "code")] += metric.GetCounter().GetValue()
		if label(metric, "method") == http.MethodPut {
			u.leases += metric.GetCounter().GetValue()
		}
	}
	return u, nil
}

func label(metric *dto.Metric, name string) string {
	for _, l := range metric.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// parseCPU reads user and system time of a process and of its children that have
// ended from /proc/PID/stat.
func parseCPU(stat []byte) (time.Duration, error) {
	// "pid (name) state ...", and the name may have any characters. The times are fields
	// 14 to 17; the state is the third.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("not a line of /proc/PID/stat: %q", stat)
	}
	var sum int64
	for _, field := range fields[11:15] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("not a line of /proc/PID/stat: %w", err)
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}

// settled waits until the process has nothing more to do, and returns what it has used
// until then. A process that does not come to rest spoils figures, but ends nothing.
func (p *process) settled(ctx context.Context) (usage, error) {
	begin := time.Now()
	// Asking costs the process time, so it is done rarely.
	ticker := time.NewTicker(asking)
	defer ticker.Stop()
	var base usage
	var since time.Time
	for {
		now, err := p.usage(ctx)
		if err != nil {
			return now, err
		}
		if time.Since(begin) >= p.settling {
			used := now.since(base)
			p.say(fmt.Sprintf("%s has not come to rest within %s: in its last %s it used %s of CPU and sent %v",
				p.Name, p.settling, time.Since(since).Round(time.Second), used.cpu, used.kinds))
			return now, nil
		}
		// Being asked costs a tick now and then, and so does the lease.
		if since.IsZero() || now.requests-now.leases != base.requests-base.leases || now.cpu-base.cpu > 5*tick {
			base, since = now, time.Now()
		}
		if time.Since(since) >= calm {
			return now, nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return now, ctx.Err()
		}
	}
}
