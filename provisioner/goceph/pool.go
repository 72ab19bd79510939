// SPDX-License-Identifier: Apache-2.0

package goceph

// pool is an open pool and one holder's share in a link. Its holder gets it as
// rbd.Around(p, p.operate).
type pool struct {
	ioctx
	connector *Connector
	link      *link
	name      string

	// Guarded by Connector.mu.

	calls  int
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
	id := p.id()
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
	defer p.connector.mu.Unlock()
	r.over = true
	if r.abandoned {
		r.countAbandoned(-1)
	}
	p.calls--
	p.release()
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
	link, id := r.pool.link, r.pool.id()
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
	p.close()
	p.link.users--
	p.connector.settle(p.link)
}
