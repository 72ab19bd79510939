// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// TestEachCallHasAnAttempt checks that each call has its texts, holds its image's name, and
// finds no image where there is none: all but those about notes, and FinishRemovals.
func TestEachCallHasAnAttempt(t *testing.T) {
	others := map[string]error{
		rbd.OpNotes: nil, rbd.OpSetNotes: rbd.ErrPoolNotFound, rbd.OpRemoveNotes: nil, rbd.OpFinishRemovals: nil,
	}
	for method := range reflect.TypeFor[rbd.Pool]().Methods() {
		if method.Name == "Close" || method.Name == rbd.OpHandOverTrashed {
			continue // operate does not make this call
		}
		a := attempts[method.Name]
		if a.call == "" || a.text == "" {
			t.Errorf("%s has none", method.Name)
		}
		notFound, other := others[method.Name]
		if !other {
			notFound = rbd.ErrImageNotFound
		}
		if a.locks == other || !errors.Is(a.notFound, notFound) {
			t.Errorf("%s locks: %v, and ENOENT means %v, want %v and %v", method.Name, a.locks, a.notFound, !other, notFound)
		}
	}
}

// TestCallOutlivesItsCaller removes an image, which takes 40 seconds, for a caller with
// less time.
func TestCallOutlivesItsCaller(t *testing.T) {
	for _, tc := range []struct {
		name           string
		timeout        time.Duration
		deadline, want time.Duration // of the caller's context, and of the answer
	}{
		{"the caller's deadline", 30 * second, 15 * second, 15 * second},
		{"the configured timeout and its grace", 30 * second, time.Hour, 31 * second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, Config{Timeout: tc.timeout}, func(t *testing.T, f *fakeCeph, c *Connector) {
				c.idleTimeout = second
				removed := false
				f.onCall = func(image string) error {
					if image != "big" {
						return nil
					}
					if removed {
						return cephError(-2)
					}
					time.Sleep(40 * second)
					removed = true
					return nil
				}
				cluster, p := openImages(t, c, fakeCreds())
				other, otherPool := openImages(t, c, fakeCreds())
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), tc.deadline)
				defer cancel()
				err := p.RemoveImage(ctx, "big")
				if !errors.Is(err, rbd.ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want ErrTimeout because of the deadline", err)
				}
				if took := time.Since(start); took != tc.want {
					t.Errorf("the caller got its answer after %s, want %s", took, tc.want)
				}
				if want := `remove image "big" in pool "images": no answer in time, the outcome is unknown`; err.Error() != want {
					t.Errorf("got the text %q, want %q", err, want)
				}

				// What the call uses stays open, even if its caller closes it.
				p.Close()
				cluster.Close()
				f.want(2, 2, 2)
				// Calls about other images need not wait; calls about this one do, on any
				// connection.
				if err := otherPool.RemoveImage(t.Context(), "small"); err != nil {
					t.Error(err)
				}
				ctx, cancel = context.WithTimeout(t.Context(), second)
				defer cancel()
				err = otherPool.RemoveImage(ctx, "big")
				if !errors.Is(err, rbd.ErrTimeout) {
					t.Errorf("got %v, want ErrTimeout", err)
				}
				if want := `remove image "big" in pool "images": an earlier call on it has not ended: no answer in time, the outcome is unknown`; err.Error() != want {
					t.Errorf("got the text %q, want %q", err, want)
				}
				// The next attempt waits, and finds the image gone.
				if err := otherPool.RemoveImage(t.Context(), "big"); !errors.Is(err, rbd.ErrImageNotFound) {
					t.Errorf("got %v, want ErrImageNotFound", err)
				}
				if took := time.Since(start); took != 40*second {
					t.Errorf("the next attempt ended after %s, want 40s", took)
				}
				otherPool.Close()
				other.Close()
				time.Sleep(2 * second)
				synctest.Wait()
				f.want(2, 0, 0)
			})
		})
	}
}

// TestWaitForANameEnds checks that a caller without a deadline does not wait for ever for a
// call from which librbd does not return.
func TestWaitForANameEnds(t *testing.T) {
	inBubble(t, Config{Timeout: 10 * second}, func(t *testing.T, f *fakeCeph, c *Connector) {
		f.onCall = func(image string) error {
			if image == "hangs" {
				time.Sleep(time.Minute)
			}
			return nil
		}
		cluster, p := openImages(t, c, fakeCreds())
		for i := range 2 {
			begin := time.Now()
			if _, err := p.Image(t.Context(), "hangs"); !errors.Is(err, rbd.ErrTimeout) {
				t.Errorf("attempt %d: got %v, want ErrTimeout", i, err)
			}
			if took := time.Since(begin); took != 11*second {
				t.Errorf("attempt %d took %s, want 11s", i, took)
			}
		}
		p.Close()
		cluster.Close()
	})
}

// TestManyUnansweredCalls checks that the number of calls whose callers gave up is bounded,
// and that new calls succeed once those are answered.
func TestManyUnansweredCalls(t *testing.T) {
	inBubble(t, Config{Timeout: second}, func(t *testing.T, f *fakeCeph, c *Connector) {
		cluster, p := openImages(t, c, fakeCreds())
		defer cluster.Close()
		defer p.Close()
		answer := make(chan struct{})
		f.onCall = func(string) error { <-answer; return nil }
		call := func(i int) (time.Duration, error) {
			begin := time.Now()
			_, err := p.Image(t.Context(), fmt.Sprint("image-", i))
			return time.Since(begin), err
		}
		for i := range maxAbandoned {
			if took, err := call(i); !errors.Is(err, rbd.ErrTimeout) || took != 2*second {
				t.Fatalf("call %d ended after %s with %v, want ErrTimeout after 2s", i, took, err)
			}
		}
		took, err := call(maxAbandoned)
		if !errors.Is(err, rbd.ErrTimeout) || took != 0 {
			t.Errorf("one more call ended after %s with %v, want ErrTimeout at once", took, err)
		}
		if want := `describe image "image-64" in pool "images": earlier calls to the pool have had no answer yet`; err.Error() != want {
			t.Errorf("got the text %q, want %q", err, want)
		}
		close(answer)
		synctest.Wait()
		if _, err := call(maxAbandoned); err != nil {
			t.Error(err)
		}
	})
}

// TestUnansweredCallsOfOnePool: a pool whose OSDs do not answer does not disturb other
// pools, whatever calls it gets.
func TestUnansweredCallsOfOnePool(t *testing.T) {
	inBubble(t, Config{Timeout: second}, func(t *testing.T, f *fakeCeph, c *Connector) {
		cluster, silent := openImages(t, c, fakeCreds())
		well, err := cluster.OpenPool(t.Context(), "other")
		if err != nil {
			t.Fatal(err)
		}
		answer := make(chan struct{})
		f.onCall = func(name string) error {
			if strings.Contains(name, "silent") {
				<-answer
			}
			return nil
		}
		for i := range maxAbandoned + 1 {
			if _, err := silent.Image(t.Context(), fmt.Sprint("silent-", i)); !errors.Is(err, rbd.ErrTimeout) {
				t.Fatalf("call %d: got %v, want ErrTimeout", i, err)
			}
			if _, err := well.Image(t.Context(), fmt.Sprint("image-", i)); err != nil {
				t.Fatalf("call %d of another pool: %v", i, err)
			}
		}
		close(answer)
		silent.Close()
		well.Close()
		cluster.Close()
	})
}

// TestUnansweredNotes: calls about notes do not wait for one another, but no call follows
// one that has had no answer.
func TestUnansweredNotes(t *testing.T) {
	inBubble(t, Config{Timeout: second}, func(t *testing.T, f *fakeCeph, c *Connector) {
		cluster, p := openImages(t, c, fakeCreds())
		answer := make(chan struct{})
		f.onCall = func(name string) error {
			if strings.HasPrefix(name, "notes silent") {
				<-answer
			}
			return nil
		}
		for i, want := range []time.Duration{2 * second, 2 * second, 2 * second} {
			begin := time.Now()
			_, err := p.Notes(t.Context(), "silent")
			if took := time.Since(begin); !errors.Is(err, rbd.ErrTimeout) || took != want {
				t.Errorf("call %d ended after %s with %v, want ErrTimeout after %s", i, took, err, want)
			}
		}
		if _, err := p.Notes(t.Context(), "other"); err != nil {
			t.Errorf("another object: %v", err)
		}
		if n := len(f.running); n != 1 {
			t.Errorf("%d calls run, want 1", n)
		}
		// A call that is waiting when the answer comes succeeds.
		time.AfterFunc(second, func() { close(answer) })
		if _, err := p.Notes(t.Context(), "silent"); err != nil {
			t.Error(err)
		}
		p.Close()
		cluster.Close()
	})
}

// TestRefusedBesideUnanswered: a connection on which a call was denied stays in use while
// another call on it has no answer, since the connection could not close.
func TestRefusedBesideUnanswered(t *testing.T) {
	inBubble(t, Config{Timeout: second}, func(t *testing.T, f *fakeCeph, c *Connector) {
		answer := make(chan struct{})
		f.onCall = func(name string) error {
			switch {
			case strings.HasPrefix(name, "silent"):
				<-answer
			case strings.HasPrefix(name, "refused"):
				return cephError(-13)
			}
			return nil
		}
		creds := fakeCreds()
		for i := range 10 {
			cluster, p := openImages(t, c, creds)
			if _, err := p.Image(t.Context(), fmt.Sprint("silent-", i)); !errors.Is(err, rbd.ErrTimeout) {
				t.Fatalf("got %v, want ErrTimeout", err)
			}
			if _, err := p.Image(t.Context(), "refused"); !errors.Is(err, rbd.ErrPermissionDenied) {
				t.Fatalf("got %v, want ErrPermissionDenied", err)
			}
			p.Close()
			cluster.Close()
		}
		if f.dials != 1 {
			t.Errorf("%d connections were made, want 1", f.dials)
		}
		close(answer)
	})
}

func TestCallIsCancelled(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		cluster, p := openImages(t, c, fakeCreds())
		f.onCall = func(string) error { time.Sleep(20 * second); return nil }
		reason := errors.New("the process is stopping")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(second, func() { cancel(reason) })
		err := p.SetMetadata(ctx, "a", nil)
		if !errors.Is(err, rbd.ErrTimeout) || !errors.Is(err, reason) {
			t.Errorf("got %v, want ErrTimeout because of the cancellation", err)
		}
		p.Close()
		cluster.Close()
	})
}

// TestCallThatIsOverBeforeItBegins checks that a call whose context has ended leaves
// nothing behind.
func TestCallThatIsOverBeforeItBegins(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		creds := fakeCreds()
		cluster, p := openImages(t, c, creds)
		defer cluster.Close()
		defer p.Close()
		f.onCall = func(name string) error {
			t.Errorf("%q was called", name)
			return nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, connectErr := c.Connect(ctx, creds)
		_, openErr := cluster.OpenPool(ctx, "images")
		_, err := p.Image(ctx, "a")
		for _, got := range []error{openErr, err} {
			if !errors.Is(got, rbd.ErrTimeout) || !errors.Is(got, context.Canceled) {
				t.Errorf("got %v, want ErrTimeout because of the cancellation", got)
			}
		}
		if !errors.Is(connectErr, rbd.ErrUnreachable) || !errors.Is(connectErr, context.Canceled) {
			t.Errorf("got %v, want ErrUnreachable because of the cancellation", connectErr)
		}
		f.onCall = nil
		if _, err := p.Image(t.Context(), "a"); err != nil {
			t.Errorf("the next call: %v", err)
		}
	})
}

// TestOpenPoolThatNobodyWaitsFor checks that a pool that opens too late is closed again.
func TestOpenPoolThatNobodyWaitsFor(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		c.idleTimeout = second
		cluster, err := c.Connect(t.Context(), fakeCreds())
		if err != nil {
			t.Fatal(err)
		}
		opened := false
		f.onCall = func(string) error { time.Sleep(20 * second); opened = true; return nil }
		ctx, cancel := context.WithTimeout(t.Context(), second)
		defer cancel()
		if _, err := cluster.OpenPool(ctx, "images"); !errors.Is(err, rbd.ErrTimeout) {
			t.Errorf("got %v, want ErrTimeout", err)
		}
		cluster.Close()
		time.Sleep(30 * second)
		synctest.Wait()
		if !opened {
			t.Error("librados has not returned")
		}
		f.want(1, 0, 0)
	})
}

// TestNamesAreLocked makes many calls about few images at once; the fake fails the test if
// two calls about one image overlap.
func TestNamesAreLocked(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		f.onCall = func(image string) error {
			if image != "pool images" {
				time.Sleep(second)
			}
			return nil
		}
		creds := fakeCreds()
		start := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			for _, image := range []string{"a", "b", "c"} {
				wg.Go(func() {
					cluster, p := openImages(t, c, creds)
					defer cluster.Close()
					defer p.Close()
					if _, err := p.Image(t.Context(), image); err != nil {
						t.Error(err)
					}
				})
			}
		}
		wg.Wait()
		if took := time.Since(start); took != 10*second {
			t.Errorf("ten calls of a second about each of three images took %s, want 10s", took)
		}
		if n := len(c.names.waiting); n != 0 {
			t.Errorf("%d names are left", n)
		}
	})
}
