// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// inBubble runs a test in a bubble, where time passes only while all goroutines wait.
func inBubble(t *testing.T, cfg Config, test func(t *testing.T, f *fakeCeph, c *Connector)) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeCeph{t: t}
		c := f.connector(cfg)
		test(t, f, c)
		f.finish(c)
	})
}

func TestConnectionsAreShared(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		f.onDial = func(rbd.Credentials) error { time.Sleep(second); return nil }
		creds := fakeCreds()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				cluster, p := openImages(t, c, creds)
				cluster.Close()
				if err := p.CreateImage(t.Context(), "a", rbd.ImageSpec{}); err != nil {
					t.Error(err)
				}
				p.Close()
			})
		}
		wg.Wait()
		f.want(1, 1, 0)

		reordered := creds
		reordered.Monitors = []string{"10.0.0.2", "10.0.0.1"}
		another := creds
		another.User = "other"
		for _, creds := range []rbd.Credentials{reordered, another} {
			cluster, p := openImages(t, c, creds)
			p.Close()
			cluster.Close()
		}
		f.want(3, 3, 0)
	})
}

func TestIdleConnectionsClose(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		creds := fakeCreds()
		cluster, p := openImages(t, c, creds)
		cluster.Close()
		time.Sleep(time.Hour)
		f.want(1, 1, 1) // the pool keeps the connection
		p.Close()
		time.Sleep(59 * time.Second)
		cluster, p = openImages(t, c, creds) // and so does another user
		f.want(1, 1, 1)
		time.Sleep(time.Hour)
		p.Close()
		cluster.Close()
		cluster.Close()
		p.Close()
		time.Sleep(59 * time.Second)
		f.want(1, 1, 0)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		f.want(1, 0, 0)
		cluster, p = openImages(t, c, creds)
		f.want(2, 1, 1)
		p.Close()
		cluster.Close()
	})
}

func TestFailedConnectIsNotRemembered(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		creds := fakeCreds()
		f.onDial = func(rbd.Credentials) error { time.Sleep(second); return cephError(-13) }
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				_, err := c.Connect(t.Context(), creds)
				if !errors.Is(err, rbd.ErrPermissionDenied) {
					t.Errorf("got %v, want ErrPermissionDenied", err)
				}
				if want := `connect to monitors "10.0.0.1" as user "kube": permission denied`; err.Error() != want {
					t.Errorf("got the text %q, want %q", err, want)
				}
			})
		}
		wg.Wait()
		f.want(1, 0, 0)
		f.onDial = nil
		cluster, p := openImages(t, c, creds)
		f.want(2, 1, 1)
		p.Close()
		cluster.Close()
	})
}

func TestConnectGivesUp(t *testing.T) {
	inBubble(t, Config{Timeout: 10 * second}, func(t *testing.T, f *fakeCeph, c *Connector) {
		creds := fakeCreds()
		f.onDial = func(rbd.Credentials) error { time.Sleep(time.Minute); return nil }
		for _, tc := range []struct{ deadline, want time.Duration }{{3 * second, 3 * second}, {time.Hour, 11 * second}} {
			ctx, cancel := context.WithTimeout(t.Context(), tc.deadline)
			begin := time.Now()
			_, err := c.Connect(ctx, creds)
			cancel()
			if !errors.Is(err, rbd.ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, want ErrUnreachable because of the deadline", err)
			}
			if took := time.Since(begin); took != tc.want {
				t.Errorf("gave up after %s, want %s", took, tc.want)
			}
		}
		// The next caller joins the attempt that goes on.
		time.Sleep(time.Minute)
		cluster, p := openImages(t, c, creds)
		f.want(1, 1, 1)
		p.Close()
		cluster.Close()
	})
}

func TestNewKeyRetiresTheOld(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		old := fakeCreds()
		renewed, wrong, other := old, old, old
		renewed.Key, wrong.Key, other.Key = rbdtest.NewKey(), rbdtest.NewKey(), rbdtest.NewKey()
		other.User = "other"
		f.onDial = func(creds rbd.Credentials) error {
			if creds.Key.Equal(wrong.Key) {
				return cephError(-13)
			}
			return nil
		}
		cluster, p := openImages(t, c, old)
		// A wrong key retires no connection, nor does another user's key.
		if _, err := c.Connect(t.Context(), wrong); !errors.Is(err, rbd.ErrPermissionDenied) {
			t.Errorf("got %v, want ErrPermissionDenied", err)
		}
		otherCluster, otherPool := openImages(t, c, other)
		otherCluster.Close()
		again, err := c.Connect(t.Context(), old)
		if err != nil {
			t.Fatal(err)
		}
		again.Close()
		f.want(3, 2, 2)

		newCluster, newPool := openImages(t, c, renewed)
		f.want(4, 3, 3)
		// The old connection works for its users, and closes when they leave.
		if _, err := p.Image(t.Context(), "a"); err != nil {
			t.Error(err)
		}
		cluster.Close()
		p.Close()
		synctest.Wait()
		f.want(4, 2, 2)
		newCluster.Close()
		newPool.Close()
		otherPool.Close()
	})
}

func TestLostConnectionIsReplaced(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		creds := fakeCreds()
		lost := true
		f.onCall = func(image string) error {
			if lost && image == "a" {
				return cephError(-108)
			}
			return nil
		}
		cluster, p := openImages(t, c, creds)
		if _, err := p.Image(t.Context(), "a"); !errors.Is(err, rbd.ErrConnectionLost) {
			t.Errorf("got %v, want ErrConnectionLost", err)
		}
		lost = false
		fresh, freshPool := openImages(t, c, creds)
		f.want(2, 2, 2)
		p.Close()
		cluster.Close()
		synctest.Wait()
		f.want(2, 1, 1)
		freshPool.Close()
		fresh.Close()
	})
}

// TestDeniedConnectionIsReplaced checks that the next attempt uses corrected caps.
func TestDeniedConnectionIsReplaced(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		f.onCall = func(image string) error {
			if image == "a" {
				return cephError(-1)
			}
			return nil
		}
		creds := fakeCreds()
		cluster, p := openImages(t, c, creds)
		if _, err := p.Image(t.Context(), "a"); !errors.Is(err, rbd.ErrPermissionDenied) {
			t.Errorf("got %v, want ErrPermissionDenied", err)
		}
		p.Close()
		cluster.Close()
		synctest.Wait()
		f.want(1, 0, 0)
		cluster, p = openImages(t, c, creds)
		f.want(2, 1, 1)
		p.Close()
		cluster.Close()
	})
}

// TestSilentConnectionIsReplaced checks that the next attempt uses corrected caps, too, if
// monitors or OSDs did not answer. A connection with a pool shows that they did.
func TestSilentConnectionIsReplaced(t *testing.T) {
	for _, silence := range []error{cephError(-110), rbd.ErrNoOSD} {
		t.Run(silence.Error(), func(t *testing.T) { testSilentConnection(t, silence) })
	}
}

func testSilentConnection(t *testing.T, silence error) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		f.onCall = func(call string) error {
			if call == "pool silent" {
				return silence
			}
			return nil
		}
		creds := fakeCreds()
		silent := func() {
			t.Helper()
			cluster, err := c.Connect(t.Context(), creds)
			if err != nil {
				t.Fatal(err)
			}
			defer cluster.Close()
			if _, err := cluster.OpenPool(t.Context(), "silent"); !errors.Is(err, rbd.ErrTimeout) {
				t.Errorf("got %v, want ErrTimeout", err)
			}
		}
		silent()
		synctest.Wait()
		f.want(1, 0, 0)
		cluster, p := openImages(t, c, creds)
		f.want(2, 1, 1)
		silent()
		synctest.Wait()
		f.want(2, 1, 1)
		p.Close()
		cluster.Close()
	})
}

func TestCloseEndsWhatNobodyClosed(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		cluster, p := openImages(t, c, fakeCreds())
		f.onCall = func(string) error { time.Sleep(5 * second); return nil }
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := p.Image(t.Context(), "a"); err != nil {
				t.Errorf("a call that ran when Close was called: %v", err)
			}
		})
		wg.Go(func() {
			// A pool that is being opened is closed, too.
			if _, err := cluster.OpenPool(t.Context(), "other"); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()

		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if err := c.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want that the deadline has passed", err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Error(err)
		}
		f.want(1, 0, 0)
		wg.Wait()

		_, err := c.Connect(t.Context(), fakeCreds())
		_, err2 := cluster.OpenPool(t.Context(), "images")
		_, err3 := p.Image(t.Context(), "a")
		for _, err := range []error{err, err2, err3} {
			if !errors.Is(err, errClosed) {
				t.Errorf("got %v, want errClosed", err)
			}
		}
		p.Close()
		cluster.Close()
	})
}

func TestCloseWhileConnecting(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		f.onDial = func(rbd.Credentials) error { time.Sleep(5 * second); return nil }
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if _, err := c.Connect(ctx, fakeCreds()); !errors.Is(err, rbd.ErrUnreachable) {
			t.Errorf("got %v, want ErrUnreachable", err)
		}
		f.finish(c)
		f.want(1, 0, 0)
	})
}

func TestCredentialsAreChecked(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		for monitor, good := range map[string]bool{
			"10.0.0.1": true, "10.0.0.1:6789": true, "v1:10.0.0.1:6789": true, "v2:10.0.0.1": true,
			"[2001:db8::1]": true, "v2:[2001:db8::1]:3300": true,
			"": false, "mon.example": false, "10.0.0.1:port": false, "10.0.0.1:99999": false, "2001:db8::1": false,
			"[10.0.0.1]": false, "v3:10.0.0.1": false, "10.0.0.1,10.0.0.2": false, "10.0.0.1 ": false, "v1:": false,
		} {
			creds := fakeCreds()
			creds.Monitors = []string{"10.0.0.1", monitor}
			cluster, err := c.Connect(t.Context(), creds)
			if (err == nil) != good {
				t.Errorf("monitor %q: got the error %v", monitor, err)
			}
			if err == nil {
				cluster.Close()
			}
		}
		for name, spoil := range map[string]func(*rbd.Credentials){
			"no monitor is given":                         func(c *rbd.Credentials) { c.Monitors = nil },
			"no user is given":                            func(c *rbd.Credentials) { c.User = "" },
			"a zero byte is not supported":                func(c *rbd.Credentials) { c.User = "a\x00b" },
			"malformed key: there is none":                func(c *rbd.Credentials) { c.Key = rbd.Key{} },
			`monitor "x" is not an IP address with an op`: func(c *rbd.Credentials) { c.Monitors[0] = "x" },
		} {
			creds := fakeCreds()
			spoil(&creds)
			if _, err := c.Connect(t.Context(), creds); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("got the error %v, want one that says %q", err, name)
			}
		}
	})
}

func TestConfig(t *testing.T) {
	got, err := Config{}.withDefaults()
	if err != nil || got.Timeout != DefaultTimeout {
		t.Errorf("the zero Config became %+v, %v", got, err)
	}
	if _, err := (Config{Timeout: -1}).withDefaults(); err == nil {
		t.Error("a negative timeout gave no error")
	}
	for timeout, want := range map[time.Duration]int64{time.Millisecond: 1, second: 1, second + 1: 2, time.Minute: 60} {
		if got := (Config{Timeout: timeout}).timeoutSeconds(); got != want {
			t.Errorf("%s became %d seconds, want %d", timeout, got, want)
		}
	}
}
