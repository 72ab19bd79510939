// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// secretAge is how long a secret that was read serves others: in a burst of claims
// all need the same one or two, and each read costs the API server as much as
// saving a volume does. It is no longer than the backoff of what failed: a retry
// finds what was mended.
const secretAge = time.Second

// recentSecrets has what was read of secrets, for secretAge, and which may not be
// read. Other errors are shared only by those who waited for them. The zero
// recentSecrets is ready.
type recentSecrets struct {
	mu    sync.Mutex // guards reads
	reads map[volume.SecretRef]*secretRead
}

// secretRead is one request for a secret. What follows done is final once that is
// closed; nobody changes the secret.
type secretRead struct {
	began  time.Time
	done   chan struct{}
	secret *corev1.Secret
	err    error
}

// get returns what read returns, or what it returned lately; shared tells that
// somebody else asked for it. The call to read is not ended with ctx, since others
// may wait for it: it has a deadline of its own.
func (r *recentSecrets) get(ctx context.Context, ref volume.SecretRef, read func(context.Context) (*corev1.Secret, error)) (secret *corev1.Secret, shared bool, err error) {
	one, shared := r.join(ref)
	if !shared {
		go func() {
			one.secret, one.err = read(context.WithoutCancel(ctx))
			close(one.done)
			if one.err != nil && !errors.Is(one.err, ErrSecretForbidden) {
				r.forget(ref, one)
			}
		}()
	}
	select {
	case <-one.done:
		return one.secret, shared, one.err
	case <-ctx.Done():
		return nil, shared, fmt.Errorf("secret %q can't be read: %w", ref, context.Cause(ctx))
	}
}

// join returns a read that somebody began lately, or a new one.
func (r *recentSecrets) join(ref volume.SecretRef) (one *secretRead, shared bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one = r.reads[ref]; one != nil && time.Since(one.began) < secretAge {
		return one, true
	}
	one = &secretRead{began: time.Now(), done: make(chan struct{})}
	if r.reads == nil {
		r.reads = map[volume.SecretRef]*secretRead{}
	}
	r.reads[ref] = one
	time.AfterFunc(secretAge, func() { r.forget(ref, one) }) // it is held no longer
	return one, false
}

// forget has the next one read the secret anew. A read that was begun since stays,
// unless one is nil.
func (r *recentSecrets) forget(ref volume.SecretRef, one *secretRead) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one == nil || r.reads[ref] == one {
		delete(r.reads, ref)
	}
}
