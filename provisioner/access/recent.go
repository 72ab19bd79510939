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

const (
	// secretAge is how long a secret that was read serves others. It is no longer
	// than the backoff of what failed: a retry finds what was mended.
	secretAge = time.Second
	// burst is how often a secret is asked for within secretAge in a burst: by six
	// claims or so.
	burst = 16
)

// ShareSecret lets operations share what is read of a secret, each for as long as
// it has not called the returned function; and in a burst also those that come after
// one another: all need the same one or two, and each read costs the API server as
// much as saving a volume does. An operation that is alone reads for itself: it sees
// what somebody changed a moment ago. Calling the function twice is harmless.
func (a *Access) ShareSecret(ref volume.SecretRef) (leave func()) { return a.recent.enter(ref) }

// recentSecrets has what was read of secrets that somebody works with, for
// secretAge, and which of them may not be read. Other errors are shared only by those
// who waited for them. The zero recentSecrets is ready.
type recentSecrets struct {
	mu      sync.Mutex // guards what follows, and what is in it
	secrets map[volume.SecretRef]*recentSecret
}

type recentSecret struct {
	users int
	// asked is when it was asked for, of which that at next is the oldest.
	asked [burst]time.Time
	next  int
	read  *secretRead // nil for none
}

// inBurst reports whether the secret was asked for so often that it will be again.
func (s *recentSecret) inBurst() bool { return time.Since(s.asked[s.next]) < secretAge }

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
		if s.users--; s.users > 0 {
			return
		}
		if !s.inBurst() {
			s.read = nil
		}
		time.AfterFunc(secretAge, func() { r.drop(ref, s) })
	})
}

// drop forgets a secret that nobody works with, nor asked for lately.
func (r *recentSecrets) drop(ref volume.SecretRef, s *recentSecret) {
	r.mu.Lock()
	defer r.mu.Unlock()
	latest := s.asked[(s.next+burst-1)%burst]
	if s.users == 0 && time.Since(latest) >= secretAge && r.secrets[ref] == s {
		delete(r.secrets, ref)
	}
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
	s := r.secrets[ref]
	s.asked[s.next], s.next = time.Now(), (s.next+1)%burst
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
