// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// operations are the calls that change something, at most one for each volume. Each runs in
// a goroutine of its own: what waits for Ceph in the kernel can't be cancelled, not even by a
// signal, while the call that asked for it must get its answer in time. The goroutine
// then runs on and keeps the volume, so that there is never more than one.
type operations struct {
	mu      sync.Mutex            // guards running
	running map[string]*operation // by the volume's handle
	all     sync.WaitGroup
}

// operation is a call that changes something about a volume.
type operation struct {
	method string
	// step says what it waits for.
	step atomic.Pointer[string]
	done chan struct{} // closed once err is final
	err  error
}

// at notes what the operation does next, for those who wait for it.
func (o *operation) at(format string, args ...any) {
	step := fmt.Sprintf(format, args...)
	o.step.Store(&step)
}

// exclusively runs work, and returns its error or, if ctx ends first, what it waits for.
// While an operation for the volume runs, be it one whose caller has given up, others are
// refused with Aborted, which kubelet takes as "may still be running".
func (s *Server) exclusively(ctx context.Context, handle, method string, work func(context.Context, *operation) error) error {
	ctx, cancel := s.bound(ctx, s.cfg.Deadline)
	defer cancel()
	o := &operation{method: method, done: make(chan struct{})}
	o.at("the start")
	if other := s.operations.begin(handle, o); other != nil {
		return status.Errorf(codes.Aborted, "%s for volume %q has not ended, still waiting for %s: will retry; %s",
			other.method, handle, *other.step.Load(), hungHint)
	}
	log := klog.FromContext(ctx)
	var abandoned atomic.Bool
	go func() {
		defer s.operations.end(handle, o)
		o.err = recovered(ctx, func() error { return work(ctx, o) })
		if abandoned.Load() {
			log.Info("An operation ended after its caller had given up", "method", method, "volume", handle, "err", o.err)
		}
	}()
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		abandoned.Store(true)
		return status.Errorf(codes.DeadlineExceeded, "still waiting for %s of volume %q: will retry; %s", *o.step.Load(), handle, hungHint)
	}
}

// hungHint is the remedy for whatever does not end.
const hungHint = "if this lasts, check that Ceph is healthy (ceph -s) and reachable from this node, and see the node's kernel log for lines of libceph"

// begin returns nil, or the operation for the volume that runs already.
func (s *operations) begin(handle string, o *operation) (other *operation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.running[handle]; other != nil {
		return other
	}
	s.running[handle] = o
	s.all.Add(1)
	return nil
}

func (s *operations) end(handle string, o *operation) {
	s.mu.Lock()
	delete(s.running, handle)
	s.mu.Unlock()
	close(o.done)
	s.all.Done()
}

// bound gives a call its deadline: limit, or somewhat less than its caller's.
func (s *Server) bound(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if deadline, set := ctx.Deadline(); set {
		limit = min(limit, time.Until(deadline)-answerTime)
	}
	return context.WithTimeout(ctx, limit)
}

// recovered turns a panic into an error: one volume must not take down the others' plugin.
func recovered(ctx context.Context, call func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			klog.FromContext(ctx).Error(nil, "BUG: a call panicked", "cause", cause, "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "a bug in the node plugin, see its log")
		}
	}()
	return call()
}
