// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"maps"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// pool is an open pool and one holder's share in a link.
type pool struct {
	connector *Connector
	link      *link
	name      string
	io        ioctx

	// Guarded by Connector.mu.

	calls  int
	closed bool
	// manager is a connection on which no command is running; nil for none.
	manager managerConn
}

// CreateImage implements rbd.Pool.
func (p *pool) CreateImage(ctx context.Context, name string, spec rbd.ImageSpec) error {
	_, err := call(ctx, p, "create", name, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.createImage(name, spec)
	})
	return err
}

// Image implements rbd.Pool.
func (p *pool) Image(ctx context.Context, name string) (rbd.Image, error) {
	return call(ctx, p, "describe", name, func(io ioctx) (rbd.Image, error) {
		return io.image(name)
	})
}

// SetMetadata implements rbd.Pool.
func (p *pool) SetMetadata(ctx context.Context, name string, entries map[string]string) error {
	_, err := call(ctx, p, "set metadata of", name, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.setMetadata(name, entries)
	})
	return err
}

// GrowImage implements rbd.Pool.
func (p *pool) GrowImage(ctx context.Context, name string, sizeBytes uint64) error {
	_, err := call(ctx, p, "grow", name, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.growImage(name, sizeBytes)
	})
	return err
}

// RemoveImage implements rbd.Pool.
func (p *pool) RemoveImage(ctx context.Context, name string) error {
	_, err := call(ctx, p, "remove", name, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.removeImage(name)
	})
	return err
}

// Written implements rbd.Pool.
func (p *pool) Written(ctx context.Context, name string) (bool, error) {
	return call(ctx, p, "look into", name, func(io ioctx) (bool, error) { return io.written(name) })
}

// Notes implements rbd.Notes.
func (p *pool) Notes(ctx context.Context, object string, keys ...string) (map[string][]byte, error) {
	return callNotes(ctx, p, "read", object, nil, func(io ioctx) (map[string][]byte, error) {
		return io.notes(object, keys)
	})
}

// SetNotes implements rbd.Notes.
func (p *pool) SetNotes(ctx context.Context, object string, notes map[string][]byte) error {
	// The call may outlive its caller, which is then free to change the map.
	notes = maps.Clone(notes)
	// Only the pool can be missing: the call makes a missing object.
	_, err := callNotes(ctx, p, "set", object, rbd.ErrPoolNotFound, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.setNotes(object, notes)
	})
	return err
}

// RemoveNotes implements rbd.Notes.
func (p *pool) RemoveNotes(ctx context.Context, object string, keys ...string) error {
	_, err := callNotes(ctx, p, "remove", object, nil, func(io ioctx) (struct{}, error) {
		return struct{}{}, io.removeNotes(object, keys)
	})
	return err
}

// Close implements rbd.Pool.
func (p *pool) Close() {
	p.connector.mu.Lock()
	defer p.connector.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	p.dropManager()
	p.release()
}

// running is a call that begin has counted in. Connector.mu guards its fields.
type running struct {
	pool *pool
	// notes is the object whose notes the call is about; empty for none.
	notes           string
	over, abandoned bool
}

// begin counts a call in, or says why there can be none. A call about notes waits for no
// other one but for those that nobody waits for any more, until earlier is closed: one
// would follow the other to an OSD that is down.
func (p *pool) begin(notes string) (call *running, earlier <-chan struct{}, err error) {
	p.connector.mu.Lock()
	defer p.connector.mu.Unlock()
	if p.closed || p.connector.closing {
		return nil, nil, errClosed
	}
	id := p.io.id()
	if p.link.abandoned[id] >= maxAbandoned {
		return nil, nil, errUnanswered
	}
	if unanswered := p.link.abandonedNotes[notesKey{id, notes}]; unanswered != nil {
		return nil, unanswered.ended, nil
	}
	p.calls++
	p.link.calls++
	return &running{pool: p, notes: notes}, nil, nil
}

// end counts out a call with the translated error err.
func (r *running) end(err error) {
	p := r.pool
	p.connector.mu.Lock()
	r.over = true
	if r.abandoned {
		r.countAbandoned(-1)
	}
	p.calls--
	p.release()
	p.connector.mu.Unlock()
	p.connector.end(p.link, err)
}

// abandon records that the caller has given up, unless the call has ended.
func (r *running) abandon() {
	r.pool.connector.mu.Lock()
	defer r.pool.connector.mu.Unlock()
	if !r.over && !r.abandoned {
		r.abandoned = true
		r.countAbandoned(1)
	}
}

// countAbandoned is called with Connector.mu held.
func (r *running) countAbandoned(n int) {
	link, id := r.pool.link, r.pool.io.id()
	if link.abandoned[id] += n; link.abandoned[id] == 0 {
		delete(link.abandoned, id)
	}
	if r.notes == "" {
		return
	}
	key := notesKey{id, r.notes}
	unanswered := link.abandonedNotes[key]
	if unanswered == nil {
		unanswered = &unansweredNotes{ended: make(chan struct{})}
		link.abandonedNotes[key] = unanswered
	}
	if unanswered.calls += n; unanswered.calls == 0 {
		close(unanswered.ended)
		delete(link.abandonedNotes, key)
	}
}

// release closes the handle of a closed pool that has no calls left, and gives back its
// share in the link. The caller holds Connector.mu.
func (p *pool) release() {
	if !p.closed || p.calls > 0 || p.link.down {
		return
	}
	delete(p.link.pools, p)
	p.io.close()
	p.link.users--
	p.connector.settle(p.link)
}
