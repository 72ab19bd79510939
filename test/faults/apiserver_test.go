// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/test/cluster"
)

// API server and etcd are halted in the middle of a burst and come back. The provisioner,
// whose lease outlasts that, continues without help.
func TestAPIServerRestarts(t *testing.T) {
	t.Parallel()
	f := newFixture(t, longLease...)
	random := random(t)
	for i, servers := range [][]*cluster.Daemon{
		{f.kube.APIServer}, {f.kube.Etcd}, {f.kube.APIServer, f.kube.Etcd},
	} {
		claims := f.claims(fmt.Sprintf("round-%d", i), 15)
		f.bound(claims[random.IntN(5)])
		for _, d := range servers {
			f.must(d.Stop())
		}
		for j := range servers { // etcd first
			f.must(servers[len(servers)-1-j].Start(f.ctx()))
		}
		f.delete(claims[:5]...)
		f.settled()
		f.running()
	}
}

// The API server answers on and off: it is halted again and again for longer than a
// request takes.
func TestSlowAPIServer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, longLease...)
	random := random(t)
	ctx, stop := context.WithCancel(f.ctx())
	ended := make(chan error, 1)
	go func() {
		ended <- halting(ctx, f.kube.APIServer, func() time.Duration {
			return time.Duration(200+random.IntN(800)) * time.Millisecond
		})
	}()
	claims := f.claims("data", 20)
	f.delete(claims[:5]...)
	for _, claim := range claims[5:] {
		f.bound(claim)
	}
	f.delete(claims[5:10]...)
	f.settled()
	stop()
	f.must(<-ended)
	f.settled()
	f.running()
}

// halting halts a daemon for some time and lets it run for as long, until ctx
// ends; then it runs.
func halting(ctx context.Context, d *cluster.Daemon, some func() time.Duration) error {
	for ctx.Err() == nil {
		length := some()
		if err := d.Pause(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		<-time.After(length)
		if err := d.Resume(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(length):
		}
	}
	return nil
}

// The API server hangs for so long that the lease is lost. The leader exits with a status
// that says so, and does nothing after that; kubelet would start it again. Until the
// lease has a new holder, no replica works: there are never two leaders.
func TestLeaseLost(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	standby := f.start(nil, shortLease...)
	t.Cleanup(func() {
		if !t.Failed() {
			f.must(standby.Stop())
		}
	})
	claims := f.claims("data", 20)
	f.bound(claims[0])
	f.must(f.kube.APIServer.Pause(f.ctx()))
	select {
	case <-f.p.Done():
	case <-time.After(patience):
		t.Fatal("the leader works on without the lease")
	}
	end := time.Now()
	if status := f.p.ExitCode(); status == 0 {
		t.Error("it ended with status 0, as if it had been asked to")
	}
	f.logged(f.p, "the lease was lost")
	f.must(f.kube.APIServer.Resume())
	f.delete(claims[:10]...)
	f.logged(standby, `"Leading"`)
	began, err := ledSince(standby)
	f.must(err)
	if began.Before(end) {
		t.Errorf("the other led from %v on, while the first had until %v", began, end)
	}
	f.must(f.p.Start(f.ctx()))
	f.settled()
}

// ledSince returns when a provisioner began to lead, according to its log, whose lines
// begin like "I0102 15:04:05.000000".
func ledSince(p *cluster.Provisioner) (time.Time, error) {
	log, err := os.ReadFile(p.Log)
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(log)) {
		fields := strings.Fields(line)
		if !strings.Contains(line, `"Leading"`) || len(fields) < 2 {
			continue
		}
		clock, err := time.ParseInLocation("0102 15:04:05.000000", fields[0][1:]+" "+fields[1], time.Local)
		return clock.AddDate(time.Now().Year()-clock.Year(), 0, 0), err
	}
	return time.Time{}, errors.New("it never led")
}
