// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// secretAge is how long a secret that was read serves others. It is no longer
// than the backoff of what failed: a retry finds what was mended.
const secretAge = time.Second

// ShareSecret lets operations share what is read of a secret, each for as long as
// it has not called the returned function: in a burst of claims all need the same
// one or two. An operation that is alone reads for itself. Calling the function
// twice is harmless.
func (a *Access) ShareSecret(ref volume.SecretRef) (leave func()) { return a.recent.enter(ref) }

// recentSecrets has what was read of secrets that somebody works with, for
// secretAge at most. Errors are shared only by those who waited for them. The
// zero recentSecrets is ready.
type recentSecrets struct {
	mu      sync.Mutex // guards what follows, and what is in it
	secrets map[volume.SecretRef]*recentSecret
}

type recentSecret struct {
	users int
	read  *secretRead // nil for none
}

// secretRead is one request for a secret. What follows done is final once that is
// closed; nobody changes the secret.
type secretRead struct {
	began  time.Time
	done   chan struct{}
	secret *corev1.Secret
	err    error
}

func (r *recentSecrets) enter(ref volume.SecretRef) (leave func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.secrets[ref]
	if s == nil {
		s = &recentSecret{}
		if r.secrets == nil {
			r.secrets = map[volume.SecretRef]*recentSecret{}
		}
		r.secrets[ref] = s
	}
	s.users++
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if s.users--; s.users == 0 {
			delete(r.secrets, ref)
		}
	})
}

// get returns what read returns, or what it returned lately; shared tells that
// somebody else asked for it. The caller has entered. The call to read is not
// ended with ctx, since others may wait for it: it has a deadline of its own.
func (r *recentSecrets) get(ctx context.Context, ref volume.SecretRef, read func(context.Context) (*corev1.Secret, error)) (secret *corev1.Secret, shared bool, err error) {
	one, shared := r.join(ref)
	if !shared {
		go func() {
			one.secret, one.err = read(context.WithoutCancel(ctx))
			close(one.done)
			if one.err != nil {
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
	s := r.secrets[ref]
	if s.read != nil && time.Since(s.read.began) < secretAge {
		return s.read, true
	}
	s.read = &secretRead{began: time.Now(), done: make(chan struct{})}
	return s.read, false
}

// forget has the next one read the secret anew, since what is in it was no good.
// A read that was begun since stays, unless one is nil.
func (r *recentSecrets) forget(ref volume.SecretRef, one *secretRead) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.secrets[ref]; s != nil && (one == nil || s.read == one) {
		s.read = nil
	}
}
