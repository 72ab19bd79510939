// SPDX-License-Identifier: Apache-2.0

package ops_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ceph.com/rbd-provisioner/provisioner/ops"
)

// pipes is a listener whose connections are pipes in memory: time passes in a
// synctest bubble only while nothing waits for a real network.
type pipes struct {
	accept chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newPipes() *pipes { return &pipes{accept: make(chan net.Conn), closed: make(chan struct{})} }

// dial connects to whoever accepts.
func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.accept <- server
	return client
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.accept:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

// served runs a test beside a server, in a bubble of its own.
func served(t *testing.T, handler http.Handler, test func(*testing.T, *pipes)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		listener := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		end := make(chan error, 1)
		go func() { end <- ops.Serve(ctx, listener, handler) }()
		test(t, listener)
		cancel()
		if err := <-end; err != nil {
			t.Error(err)
		}
		// What Shutdown waits for has ended by then, too.
		time.Sleep(time.Minute)
	})
}

// Whoever holds a connection without using it is not let keep it.
func TestSlowClientsAreDropped(t *testing.T) {
	for _, test := range []struct {
		name string
		// send talks until it is done or the connection is closed.
		send func(net.Conn)
		// most is when the connection is closed at the latest.
		most time.Duration
	}{
		{"sends nothing", func(net.Conn) {}, 6 * time.Second},
		{"sends its header byte by byte", func(c net.Conn) {
			for _, b := range []byte("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + strings.Repeat("x", 1000)) {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, 6 * time.Second},
		{"promises a body that never comes", func(c net.Conn) {
			_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
		}, 31 * time.Second},
		{"stays after its answer", func(c net.Conn) {
			_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		}, 2*time.Minute + time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			served(t, handler(nil, nil), func(t *testing.T, listener *pipes) {
				c, start := listener.dial(), time.Now()
				sent := make(chan struct{})
				go func() {
					defer close(sent)
					test.send(c)
				}()
				// It ends when the server closes the connection.
				_, _ = io.Copy(io.Discard, c)
				if took := time.Since(start); took > test.most {
					t.Errorf("the connection was closed after %v, want at most %v", took, test.most)
				}
				_ = c.Close()
				<-sent
			})
		})
	}
}

// A client that asks and does not read the answer.
func TestUnreadAnswerIsDropped(t *testing.T) {
	var written chan error // made in the bubble
	large := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := io.WriteString(w, strings.Repeat("x", 1<<20))
		written <- err
	})
	served(t, large, func(t *testing.T, listener *pipes) {
		written = make(chan error, 1)
		c, start := listener.dial(), time.Now()
		if _, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		err := <-written
		if took := time.Since(start); err == nil || took > 31*time.Second {
			t.Errorf("the handler wrote for %v: %v, want an error after at most 31 s", took, err)
		}
		_ = c.Close()
	})
}

func TestLargeHeadersAreRefused(t *testing.T) {
	served(t, handler(nil, nil), func(t *testing.T, listener *pipes) {
		c := listener.dial()
		go func() {
			// Cut off by the server.
			_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("x", 1<<20)+"\r\n\r\n")
		}()
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		if answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("got %s, want 431", answer.Status)
		}
		_ = c.Close()
	})
}
