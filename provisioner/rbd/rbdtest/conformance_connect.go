// SPDX-License-Identifier: Apache-2.0

package rbdtest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

const connectAttempt = "connect to monitors "

var versionForm = regexp.MustCompile(`^\d+\.\d+\.\d+`)

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// refused connects with a key that the monitors refuse, and returns the error. A monitor of
// Ceph 20.2.4 ends a connection of message protocol 1 with its refusal, which then is read
// in one of three tries only (measured); librados tries every 3 s, for a while.
func refused(ctx context.Context, c rbd.Connector, creds rbd.Credentials) error {
	var err error
	for range 10 {
		if _, err = c.Connect(ctx, creds); !errors.Is(err, rbd.ErrUnreachable) {
			break
		}
	}
	return err
}

func (s suite) testConnect(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := s.NewConnector(t)

	t.Run("the FSID is a UUID and the same for everybody", func(t *testing.T) {
		fsid := s.connect(t, c, s.Admin).FSID()
		if !uuidForm.MatchString(fsid) {
			t.Errorf("the FSID is %q, no UUID", fsid)
		}
		if other := s.connect(t, c, s.Restricted).FSID(); other != fsid {
			t.Errorf("another user got the FSID %q, want %q", other, fsid)
		}
		if other := s.connect(t, s.NewConnector(t), s.Admin).FSID(); other != fsid {
			t.Errorf("another connector got the FSID %q, want %q", other, fsid)
		}
	})
	t.Run("the version of Ceph, for all who may read from monitors", func(t *testing.T) {
		const attempt = "ask for the version of Ceph: "
		for _, creds := range []rbd.Credentials{s.Admin, s.Restricted, s.NoCaps} {
			if version, err := s.connect(t, c, creds).Version(ctx); err != nil || !versionForm.MatchString(version) {
				t.Errorf("%s got the version %q, error %v", creds.User, version, err)
			}
		}
		_, err := s.connect(t, c, s.DeafMonitor).Version(ctx)
		wantError(t, err, rbd.ErrPermissionDenied, attempt, s.DeafMonitor.Key)
		canceled, cancel := context.WithCancel(ctx)
		cancel()
		closing := s.connect(t, c, s.Admin)
		_, err = closing.Version(canceled)
		wantError(t, err, rbd.ErrTimeout, attempt)
		closing.Close()
		if _, err := closing.Version(ctx); err == nil {
			t.Error("a closed connection told the version")
		}
	})
	t.Run("a wrong key, an unknown user, no key", func(t *testing.T) {
		wrong := s.Admin
		wrong.Key = NewKey()
		err := refused(ctx, c, wrong)
		wantError(t, err, rbd.ErrPermissionDenied, connectAttempt, wrong.Key)
		// The failure is not remembered, and harms no other user.
		s.connect(t, c, s.Admin)

		unknown := s.Admin
		unknown.User = "nobody-of-this-name"
		err = refused(ctx, c, unknown)
		wantError(t, err, rbd.ErrPermissionDenied, connectAttempt, unknown.Key)

		none := s.Admin
		none.Key = rbd.Key{}
		_, err = c.Connect(ctx, none)
		wantError(t, err, rbd.ErrInvalidKey, connectAttempt)
	})
	t.Run("a key of a type that came later", func(t *testing.T) {
		later := s.Admin
		later.Key = NewKeyOfType(65535, 64)
		err := refused(ctx, c, later)
		wantError(t, err, rbd.ErrKeyType, connectAttempt, later.Key)
		if err != nil && !strings.Contains(err.Error(), "number 65535") {
			t.Errorf("the error does not name the type: %v", err)
		}
	})
	t.Run("the key of another user, and a user without caps for monitors", func(t *testing.T) {
		// Ceph answers alike, as to a wrong key.
		other := s.Admin
		other.Key = s.Restricted.Key
		err := refused(ctx, c, other)
		wantError(t, err, rbd.ErrPermissionDenied, connectAttempt, other.Key)
		err = refused(ctx, c, s.NoMonitor)
		wantError(t, err, rbd.ErrPermissionDenied, connectAttempt, s.NoMonitor.Key)
	})
	t.Run("a user whose caps for monitors do not allow reading", func(t *testing.T) {
		_, err := s.connect(t, c, s.DeafMonitor).OpenPool(ctx, s.Pool)
		wantError(t, err, rbd.ErrTimeout, "open pool ", s.DeafMonitor.Key)
	})
	t.Run("monitors that do not answer", func(t *testing.T) {
		dead := s.Admin
		dead.Monitors = []string{s.DeadMonitor}
		_, err := c.Connect(ctx, dead)
		wantError(t, err, rbd.ErrUnreachable, connectAttempt, dead.Key)
		for _, monitors := range [][]string{
			append([]string{s.DeadMonitor}, s.Admin.Monitors...),
			append(slices.Clone(s.Admin.Monitors), s.DeadMonitor),
		} {
			some := s.Admin
			some.Monitors = monitors
			s.connect(t, c, some)
		}
	})
	t.Run("closing twice is harmless, and closes one share only", func(t *testing.T) {
		one, two := s.connect(t, c, s.Admin), s.connect(t, c, s.Admin)
		one.Close()
		one.Close()
		if _, err := one.OpenPool(ctx, s.Pool); err == nil {
			t.Error("opening a pool of a closed connection gave no error")
		}
		openPool(t, two, s.Pool)
	})
	t.Run("a new key", func(t *testing.T) {
		old := s.AddUser(t, "rotated")
		held := s.connect(t, c, old)
		renewed := s.AddUser(t, "rotated")
		// An open connection goes on working; a new one needs the new key.
		s.connect(t, c, renewed)
		openPool(t, held, s.Pool)
		err := refused(ctx, s.NewConnector(t), old)
		wantError(t, err, rbd.ErrPermissionDenied, connectAttempt, old.Key, renewed.Key)
		s.connect(t, c, renewed)
	})
}

func (s suite) testOpenPool(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	t.Run("a pool that is not there", func(t *testing.T) {
		_, err := s.connect(t, s.NewConnector(t), s.Admin).OpenPool(ctx, "no-such-pool")
		wantError(t, err, rbd.ErrPoolNotFound, `open pool "no-such-pool": `)
	})
	t.Run("a pool made since the connection", func(t *testing.T) {
		cluster := s.connect(t, s.NewConnector(t), s.Admin)
		s.AddPool(t, "made-later")
		p := openPool(t, cluster, "made-later")
		create(t, p, "image", rbd.ImageSpec{SizeBytes: 1 << 20})
		s.RemovePool(t, "made-later")
		// It takes a real cluster some seconds to tell its OSDs, and one that hears of it just
		// as it is asked may drop the question: such a call has no answer.
		var err error
		begun := time.Now()
		for i := 0; (err == nil || errors.Is(err, rbd.ErrTimeout)) && time.Since(begun) < time.Minute; i++ {
			err = p.CreateImage(ctx, fmt.Sprintf("too-late-%d", i), rbd.ImageSpec{SizeBytes: 1 << 20})
		}
		wantError(t, err, rbd.ErrPoolNotFound, `create image "too-late-`)
		_, err = p.Image(ctx, "image")
		wantError(t, err, rbd.ErrImageNotFound, `describe image "image" in pool "made-later": `)
	})
	t.Run("a pool outlives its connection", func(t *testing.T) {
		cluster := s.connect(t, s.NewConnector(t), s.Admin)
		p := openPool(t, cluster, s.Pool)
		cluster.Close()
		create(t, p, "outlives", rbd.ImageSpec{SizeBytes: 1 << 20})
		remove(t, p, "outlives")
		p.Close()
		p.Close()
		if _, err := p.Image(ctx, "outlives"); err == nil || errors.Is(err, rbd.ErrImageNotFound) {
			t.Errorf("a call on a closed pool gave the error %v, want one that says so", err)
		}
	})
}

// testConcurrency has many goroutines use the same images and connections.
func (s suite) testConcurrency(t *testing.T) {
	t.Parallel()
	const workers = 16
	c := s.NewConnector(t)
	p := openPool(t, s.connect(t, c, s.Admin), s.Pool)

	t.Run("one of many creations wins", func(t *testing.T) {
		errs := make([]error, workers)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = p.CreateImage(t.Context(), "raced", rbd.ImageSpec{SizeBytes: 1 << 20}) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else {
				wantError(t, err, rbd.ErrImageExists, `create image "raced"`)
			}
		}
		if won != 1 {
			t.Errorf("%d of %d creations succeeded, want 1", won, workers)
		}
	})
	t.Run("one of many removals wins", func(t *testing.T) {
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				if err := p.RemoveImage(t.Context(), "raced"); err != nil && !errors.Is(err, rbd.ErrImageNotFound) {
					t.Errorf("got %v, want ErrImageNotFound or none", err)
				}
			})
		}
		wg.Wait()
		_, err := p.Image(t.Context(), "raced")
		wantError(t, err, rbd.ErrImageNotFound, `describe image "raced"`)
	})
	t.Run("everybody connects, works and closes", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range workers {
			wg.Go(func() {
				if err := s.lifetime(t.Context(), c, "crowd-"+string(rune('a'+i))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

// lifetime does what provisioning and deleting one volume does.
func (s suite) lifetime(ctx context.Context, c rbd.Connector, name string) error {
	cluster, err := c.Connect(ctx, s.Restricted)
	if err != nil {
		return err
	}
	defer cluster.Close()
	p, err := cluster.OpenPool(ctx, s.Pool)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.CreateImage(ctx, name, rbd.ImageSpec{SizeBytes: 1 << 20}); err != nil {
		return err
	}
	if err := p.SetMetadata(ctx, name, map[string]string{"owner": name}); err != nil {
		return err
	}
	image, err := p.Image(ctx, name)
	if err != nil {
		return err
	}
	if image.Metadata["owner"] != name {
		return errors.New("another image's metadata: " + image.Metadata["owner"])
	}
	return p.RemoveImage(ctx, name)
}

// testConnectionLost checks that a new connection replaces one that the cluster has shut
// out.
func (s suite) testConnectionLost(t *testing.T) {
	c := s.NewConnector(t)
	p := openPool(t, s.connect(t, c, s.Admin), s.Pool)
	create(t, p, "lost", rbd.ImageSpec{SizeBytes: 1 << 20})
	s.Disconnect(t, c)
	_, err := p.Image(t.Context(), "lost")
	wantError(t, err, rbd.ErrConnectionLost, `describe image "lost"`)

	fresh := openPool(t, s.connect(t, c, s.Admin), s.Pool)
	describe(t, fresh, "lost")
	_, err = p.Image(t.Context(), "lost")
	wantError(t, err, rbd.ErrConnectionLost, `describe image "lost"`)
}
