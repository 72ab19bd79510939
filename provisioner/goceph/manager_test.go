// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestManagerConnection: the connection to a manager is made when it is needed, is not
// shared with other calls, and closes with the pool.
func TestManagerConnection(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		cluster, p := openImages(t, c, fakeCreds())
		f.want(1, 1, 1)
		for range 3 {
			if err := p.HandOverTrashed(t.Context(), "1a"); err != nil {
				t.Error(err)
			}
			f.want(2, 2, 1)
		}
		p.Close()
		synctest.Wait()
		f.want(2, 1, 0)
		if err := p.HandOverTrashed(t.Context(), "1a"); !errors.Is(err, errClosed) {
			t.Errorf("got %v, want errClosed", err)
		}
		f.want(2, 1, 0)

		// A connection whose pool was never closed closes with the Connector.
		_, p = openImages(t, c, fakeCreds())
		if err := p.HandOverTrashed(t.Context(), "1a"); err != nil {
			t.Error(err)
		}
		cluster.Close()
	})
}

// TestManagerErrors: a manager's answer does not affect the shared connection.
func TestManagerErrors(t *testing.T) {
	for name, test := range map[string]struct{ err, want error }{
		"denied":    {cephError(-13), rbd.ErrPermissionDenied},
		"lost":      {cephError(-108), rbd.ErrConnectionLost},
		"too old":   {cephError(-22), rbd.ErrNotSupported},
		"not there": {cephError(-2), rbd.ErrImageNotFound},
		"in vain":   {rbd.ErrManagerFailed, rbd.ErrManagerFailed},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
				cluster, p := openImages(t, c, fakeCreds())
				f.onManager = func(string) error { return test.err }
				err := p.HandOverTrashed(t.Context(), "1a")
				if !errors.Is(err, test.want) {
					t.Errorf("got %v, want %v", err, test.want)
				}
				if want := `hand over image "1a" in the trash of pool "images": ` + test.want.Error(); err.Error() != want {
					t.Errorf("got the text %q, want %q", err, want)
				}
				f.onManager = nil
				if err := p.HandOverTrashed(t.Context(), "1a"); err != nil {
					t.Error(err)
				}
				synctest.Wait() // for the answer to the question for the version
				for l := range c.links {
					if l.retired || l.calls != 0 {
						t.Errorf("the connection has %d calls, and was retired: %t", l.calls, l.retired)
					}
				}
				p.Close()
				cluster.Close()
			})
		})
	}
	t.Run("no connection", func(t *testing.T) {
		inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
			cluster, p := openImages(t, c, fakeCreds())
			f.onDial = func(rbd.Credentials) error { return cephError(-110) }
			if err := p.HandOverTrashed(t.Context(), "1a"); !errors.Is(err, rbd.ErrUnreachable) {
				t.Errorf("got %v, want ErrUnreachable", err)
			}
			f.want(2, 1, 1)
			p.Close()
			cluster.Close()
		})
	})
	t.Run("names that the manager reads as others", func(t *testing.T) {
		inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
			cluster, p := openImages(t, c, fakeCreds())
			for _, id := range []string{"", "a/b", "a@b", "a\x00b"} {
				if err := p.HandOverTrashed(t.Context(), id); !errors.Is(err, rbd.ErrNotSupported) {
					t.Errorf("%q: got %v, want ErrNotSupported", id, err)
				}
			}
			f.want(1, 1, 1)
			p.Close()
			cluster.Close()
		})
	})
}

// TestManagerTurns: callers take turns.
func TestManagerTurns(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		cluster, p := openImages(t, c, fakeCreds())
		f.onManager = func(string) error { time.Sleep(second); return nil }
		begin := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if err := p.HandOverTrashed(t.Context(), "1a"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begin); took != 5*second {
			t.Errorf("it took %s", took)
		}
		f.want(2, 2, 1)
		p.Close()
		cluster.Close()
	})
}

// TestManagerUnanswered: a caller returns at its deadline, while the command goes on. Until
// that ends, no other command begins, not even with a new key.
func TestManagerUnanswered(t *testing.T) {
	inBubble(t, Config{Timeout: time.Minute}, func(t *testing.T, f *fakeCeph, c *Connector) {
		creds := fakeCreds()
		cluster, p := openImages(t, c, creds)
		creds.Key = rbdtest.NewKey()
		newCluster, newPool := openImages(t, c, creds)
		answer := make(chan struct{})
		f.onManager = func(string) error { <-answer; return nil }
		ask := func(p rbd.Pool) (time.Duration, error) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*second)
			defer cancel()
			begin := time.Now()
			err := p.HandOverTrashed(ctx, "1a")
			return time.Since(begin), err
		}
		for _, p := range []rbd.Pool{p, p, newPool} {
			if took, err := ask(p); !errors.Is(err, rbd.ErrTimeout) || took != 10*second {
				t.Errorf("got %v after %s, want ErrTimeout after 10 s", err, took)
			}
			if _, err := p.Trashed(t.Context(), "1a"); err != nil {
				t.Errorf("a call that needs no manager: %v", err)
			}
			f.want(3, 3, 2)
		}
		p.Close()
		synctest.Wait()
		f.want(3, 3, 1) // librados would not end the connection

		close(answer)
		synctest.Wait()
		f.want(3, 2, 1)
		if _, err := ask(newPool); err != nil {
			t.Error(err)
		}
		f.want(4, 3, 1)
		newPool.Close()
		cluster.Close()
		newCluster.Close()
	})
}

// TestManagerClose: a command without an answer does not keep the process from ending.
func TestManagerClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeCeph{t: t}
		c := f.connector(Config{})
		cluster, p := openImages(t, c, fakeCreds())
		answer := make(chan struct{})
		f.onManager = func(string) error { <-answer; return nil }
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if err := p.HandOverTrashed(ctx, "1a"); !errors.Is(err, rbd.ErrTimeout) {
			t.Errorf("got %v, want ErrTimeout", err)
		}
		p.Close()
		cluster.Close()
		begin := time.Now()
		if err := c.Close(t.Context()); err != nil || time.Since(begin) != 0 {
			t.Errorf("closed after %s: %v", time.Since(begin), err)
		}
		f.want(2, 1, 0) // librados would not end it
		close(answer)
		synctest.Wait()
		f.want(2, 0, 0)
	})
}
