// SPDX-License-Identifier: Apache-2.0

package goceph

// pool is an open pool and one holder's share in a link. Its holder gets it as
// rbd.Around(p, p.operate).
type pool struct {
	ioctx
	connector *Connector
	link      *link
	name      string
	// number is the pool's ID, also when the handle is closed.
	number int64

	// Guarded by Connector.mu.

	calls  int // with the one that opens the pool
	closed bool
	// manager is a connection on which no command is running; nil for none.
	manager managerConn
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

// running is a call that begin has counted in.
type running struct {
	pool *pool
	// notes is the object whose notes the call is about; empty for none.
	notes string
	ended chan struct{} // closed with Connector.mu held
}

// begin counts a call in, or says why there can be none. A call about notes waits for no
// other one but for those whose callers gave up, until earlier is closed: one would follow
// the other to an OSD that is down.
func (p *pool) begin(notes string) (call *running, earlier <-chan struct{}, err error) {
	p.connector.mu.Lock()
	defer p.connector.mu.Unlock()
	if p.closed || p.connector.closing {
		return nil, nil, errClosed
	}
	unanswered := 0
	for other := range p.link.abandoned {
		if other.pool.number != p.number {
			continue
		}
		unanswered++
		if notes != "" && other.notes == notes {
			earlier = other.ended
		}
	}
	switch {
	case unanswered >= maxAbandoned:
		return nil, nil, errUnanswered
	case earlier != nil:
		return nil, earlier, nil
	}
	p.calls++
	p.link.calls++
	return &running{pool: p, notes: notes, ended: make(chan struct{})}, nil, nil
}

// end counts out a call with the translated error err.
func (r *running) end(err error) {
	p := r.pool
	p.connector.mu.Lock()
	defer p.connector.mu.Unlock()
	close(r.ended)
	delete(p.link.abandoned, r)
	p.calls--
	p.release()
	p.connector.end(p.link, err)
}

// abandon records that the caller has given up, unless the call has ended.
func (r *running) abandon() {
	r.pool.connector.mu.Lock()
	defer r.pool.connector.mu.Unlock()
	select {
	case <-r.ended:
	default:
		r.pool.link.abandoned[r] = struct{}{}
	}
}

// release closes the handle of a closed pool that has no calls left, and gives back its
// share in the link. The caller holds Connector.mu.
func (p *pool) release() {
	if !p.closed || p.calls > 0 || p.link.down {
		return
	}
	delete(p.link.pools, p)
	p.close()
	p.link.users--
	p.connector.settle(p.link)
}
