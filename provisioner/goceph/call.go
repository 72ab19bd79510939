// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// run runs f, a call of librados or librbd that blocks and cannot be
// cancelled, and waits for it until ctx ends. f owns what it works on and gives
// it back itself, however late it returns. A caller that gave up gets an error
// that wraps ErrTimeout and the context's; what f then returns without an error
// goes to discard, unless that is nil.
func run[T any](ctx context.Context, f func() (T, error), discard func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	taken := make(chan result)
	gone := make(chan struct{})
	// The owner of this goroutine is the Connector: f counts as a running call
	// of a connection, and Close waits for those.
	go func() {
		value, err := f()
		select {
		case taken <- result{value, err}:
		case <-gone:
			if err == nil && discard != nil {
				discard(value)
			}
		}
	}()
	select {
	case r := <-taken:
		return r.value, r.err
	case <-ctx.Done():
		close(gone)
		var none T
		return none, &interrupted{rbd.ErrTimeout, context.Cause(ctx)}
	}
}

// call runs f, which does one thing to one image of an open pool. It holds the
// image's name and a share in the pool until f returns, not until the caller
// gives up. The error says what was attempted.
func call[T any](ctx context.Context, p *pool, attempt, image string, f func(ioctx) (T, error)) (T, error) {
	return callLocking(ctx, p, attempt, image, image, f)
}

// callLocking is call for what holds another name than the image's.
func callLocking[T any](ctx context.Context, p *pool, attempt, image, lock string, f func(ioctx) (T, error)) (T, error) {
	value, err := operate(ctx, p, operation{
		log: klog.FromContext(ctx).WithValues("image", image), message: "Called librbd", attempt: attempt,
		name: image, notFound: rbd.ErrImageNotFound, lock: lock,
	}, f)
	if err != nil {
		err = fmt.Errorf("%s image %q in pool %q: %w", attempt, image, p.name, err)
	}
	return value, err
}

// callNotes is call for the notes of an object. It locks nothing: each of these
// calls is one operation of one OSD, which puts them in a row itself. notFound is
// what ENOENT means; nil for success.
func callNotes[T any](ctx context.Context, p *pool, attempt, object string, notFound error, f func(ioctx) (T, error)) (T, error) {
	value, err := operate(ctx, p, operation{
		log: klog.FromContext(ctx).WithValues("object", object), message: "Called librados", attempt: attempt + " notes",
		name: object, notFound: notFound,
	}, f)
	if err != nil {
		err = fmt.Errorf("%s notes %q in pool %q: %w", attempt, object, p.name, err)
	}
	return value, err
}

// operation is one call to an open pool.
type operation struct {
	// log says what it is about, message and attempt what was done.
	log              klog.Logger
	message, attempt string
	// name is that of the image or the object.
	name string
	// notFound is what ENOENT means; nil for success.
	notFound error
	// lock is the name of an image that is held until the call returns; empty for
	// none.
	lock string
}

// operate runs f, and holds a share in the pool until f returns, not until the
// caller gives up.
func operate[T any](ctx context.Context, p *pool, o operation, f func(ioctx) (T, error)) (T, error) {
	var none T
	if err := checkName(o.name); err != nil {
		return none, err
	}
	// Before anything is counted or begun: what is over needs no call.
	if ctx.Err() != nil {
		return none, &interrupted{rbd.ErrTimeout, context.Cause(ctx)}
	}
	// Also the wait for the name ends, whatever the caller's context says.
	ctx, cancel := context.WithTimeout(ctx, p.connector.cfg.Timeout+grace)
	defer cancel()
	unlock := func() {}
	if o.lock != "" {
		var err error
		if unlock, err = p.connector.names.lock(ctx, imageName{p.link.fsid(), p.io.id(), o.lock}); err != nil {
			return none, fmt.Errorf("%w: %w", rbd.ErrImageBusy, err)
		}
	}
	counted, err := p.await(ctx, o)
	if err != nil {
		unlock()
		return none, err
	}
	start := time.Now()
	value, err := run(ctx, func() (T, error) {
		defer unlock()
		value, err := f(p.io)
		err = translate(err, o.notFound)
		counted.end(err)
		o.log.V(4).Info(o.message, "call", o.attempt, "pool", p.name,
			"duration", time.Since(start), "err", err)
		return value, err
	}, nil)
	counted.abandon() // unless it has ended
	return value, err
}

// await counts a call in, once that can be.
func (p *pool) await(ctx context.Context, o operation) (*running, error) {
	notes := ""
	if o.lock == "" {
		notes = o.name
	}
	for {
		counted, earlier, err := p.begin(notes)
		if earlier == nil {
			return counted, err
		}
		select {
		case <-earlier:
		case <-ctx.Done():
			return nil, &interrupted{errUnanswered, context.Cause(ctx)}
		}
	}
}

// checkName refuses what a C function would read as another name.
func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("an empty name is %w", rbd.ErrNotSupported)
	}
	return checkText(name)
}

// checkText refuses text that a C function would cut short.
func checkText(text string) error {
	if strings.ContainsRune(text, 0) {
		return fmt.Errorf("a zero byte is %w", rbd.ErrNotSupported)
	}
	return nil
}
