// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

var errClosed = errors.New("the connection was closed by this program")

// pool is the rbd.Pool that a caller holds.
type pool struct {
	session *session
	state   *poolState
	closed  bool // guarded by Cluster.mu
}

// CreateImage implements rbd.Pool.
func (p *pool) CreateImage(ctx context.Context, name string, spec rbd.ImageSpec) error {
	_, err := call(ctx, p, CallCreateImage, "create", name, func() (struct{}, error) {
		return struct{}{}, p.session.cluster.createImage(p.state, name, spec, p.session.caps)
	})
	return err
}

// Image implements rbd.Pool.
func (p *pool) Image(ctx context.Context, name string) (rbd.Image, error) {
	image, err := call(ctx, p, CallImage, "describe", name, func() (rbd.Image, error) {
		i, err := p.state.image(name)
		if err != nil {
			return rbd.Image{}, err
		}
		return i.describe(), nil
	})
	if show := p.session.cluster.shown(); err == nil && show != nil {
		show(&image)
	}
	return image, err
}

// SetMetadata implements rbd.Pool.
func (p *pool) SetMetadata(ctx context.Context, name string, entries map[string]string) error {
	_, err := call(ctx, p, CallSetMetadata, "set metadata of", name, func() (struct{}, error) {
		for key, value := range entries {
			if err := errors.Join(checkName(key), checkText(value)); err != nil {
				return struct{}{}, fmt.Errorf("entry %q: %w", key, err)
			}
		}
		return struct{}{}, p.state.setMetadata(name, entries)
	})
	return err
}

// GrowImage implements rbd.Pool.
func (p *pool) GrowImage(ctx context.Context, name string, sizeBytes uint64) error {
	_, err := call(ctx, p, CallGrowImage, "grow", name, func() (struct{}, error) {
		return struct{}{}, p.state.growImage(name, sizeBytes)
	})
	return err
}

// RemoveImage implements rbd.Pool.
func (p *pool) RemoveImage(ctx context.Context, name string) error {
	_, err := call(ctx, p, CallRemoveImage, "remove", name, func() (struct{}, error) {
		return struct{}{}, p.state.removeImage(name, p.session.caps, nil)
	})
	return err
}

// Written implements rbd.Pool.
func (p *pool) Written(ctx context.Context, name string) (bool, error) {
	return call(ctx, p, CallWritten, "look into", name, func() (bool, error) {
		i, err := p.state.image(name)
		return err == nil && i.written, err
	})
}

// Close implements rbd.Pool.
func (p *pool) Close() { p.session.cluster.close(&p.closed) }

// call makes one call about one image. f runs with Cluster.mu held. Until it has run, the
// image's name is locked, even if the caller gave up.
func call[T any](ctx context.Context, p *pool, kind Call, attempt, image string, f func() (T, error)) (T, error) {
	value, err := callImage(ctx, p, kind, image, f)
	if err != nil {
		err = fmt.Errorf("%s image %q in pool %q: %w", attempt, image, p.state.name, err)
	}
	return value, err
}

func callImage[T any](ctx context.Context, p *pool, kind Call, image string, f func() (T, error)) (T, error) {
	var none T
	if err := checkName(image); err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	unlock, err := p.session.cluster.names.lock(ctx, p.state, image)
	if err != nil {
		return none, fmt.Errorf("%w: %w", rbd.ErrImageBusy, err)
	}
	return invoke(ctx, p, kind, image, unlock, f)
}

// invoke runs f with Cluster.mu held, and then unlock, even if the caller gave up.
func invoke[T any](ctx context.Context, p *pool, kind Call, name string, unlock func(), f func() (T, error)) (T, error) {
	var none T
	c := p.session.cluster
	c.mu.Lock()
	closed, paused := p.closed, c.paused
	c.mu.Unlock()
	switch {
	case closed:
		unlock()
		return none, errClosed
	case ctx.Err() != nil:
		unlock()
		return none, interrupted(ctx, rbd.ErrTimeout)
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		defer unlock()
		if paused != nil {
			<-paused
		}
		fault := c.fault(kind, name)
		fault.before()
		value, err := p.reach(kind, name, fault, func() (any, error) { return f() })
		r := result{err: err}
		r.value, _ = value.(T)
		done <- r
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, interrupted(ctx, rbd.ErrTimeout)
	}
}

// reach is what happens to a call in the cluster.
func (p *pool) reach(kind Call, image string, fault FakeFault, f func() (any, error)) (any, error) {
	c := p.session.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := p.session.check(); err != nil {
		return nil, err
	}
	if !p.session.caps.allow(p.state.name) {
		return nil, rbd.ErrPermissionDenied
	}
	if fault.Err == nil {
		return f()
	}
	switch {
	case fault.TakesEffect:
		// The caller never learns the result.
		_, _ = f()
	case fault.HalfWay && (kind == CallCreateImage || kind == CallCloneImage) && p.state.images[image] == nil:
		p.state.remains[image] = RemainsDirectoryOnly
	case fault.HalfWay && kind == CallTrashImage && p.state.images[image] != nil:
		p.state.moveToTrash(image).moving = true
	case fault.HalfWay && kind == CallRemoveImage:
		// Nor this result.
		_ = p.state.removeImage(image, p.session.caps, fault.Err)
	case fault.HalfWay && kind == CallRemoveTrashed:
		p.state.emptyTrashed(image, p.session.caps)
	}
	return nil, fault.Err
}

// nameLocks makes calls about the same image run one after the other.
type nameLocks struct {
	mu   sync.Mutex // guards held
	held map[nameKey]chan struct{}
}

type nameKey struct {
	pool  *poolState
	image string
}

func (n *nameLocks) lock(ctx context.Context, pool *poolState, image string) (unlock func(), err error) {
	key := nameKey{pool, image}
	for {
		n.mu.Lock()
		released := n.held[key]
		if released == nil {
			released = make(chan struct{})
			if n.held == nil {
				n.held = map[nameKey]chan struct{}{}
			}
			n.held[key] = released
			n.mu.Unlock()
			return func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				delete(n.held, key)
				close(released)
			}, nil
		}
		n.mu.Unlock()
		select {
		case <-released:
		case <-ctx.Done():
			return nil, interrupted(ctx, rbd.ErrTimeout)
		}
	}
}

// interrupted is the error of a call whose context ended. Its text is that of
// the sentinel.
func interrupted(ctx context.Context, sentinel error) error {
	return &interruptedError{sentinel, context.Cause(ctx)}
}

type interruptedError struct{ sentinel, cause error }

func (e *interruptedError) Error() string   { return e.sentinel.Error() }
func (e *interruptedError) Unwrap() []error { return []error{e.sentinel, e.cause} }

func checkName(name string) error {
	if name == "" {
		return fmt.Errorf("an empty name is %w", rbd.ErrNotSupported)
	}
	return checkText(name)
}

func checkText(text string) error {
	if strings.ContainsRune(text, 0) {
		return fmt.Errorf("a zero byte is %w", rbd.ErrNotSupported)
	}
	return nil
}
