// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// FakeMonitor says something to whoever connects, and nothing more; it closes the connection
// if that is empty. It returns its address.
func FakeMonitor(t *testing.T, say string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if _, err := conn.Write([]byte(say)); err != nil || say == "" {
				_ = conn.Close()
			} else {
				t.Cleanup(func() { _ = conn.Close() })
			}
		}
	}()
	return listener.Addr().String()
}

// TestGreet asks monitors of each kind.
func TestGreet(t *testing.T) {
	const v1, v2, silent = "ceph v027\x00\x00", "ceph v2\n\x10\x00", "c"
	gone := func() string {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		must(t, listener.Close())
		return listener.Addr().String()
	}()
	for name, test := range map[string]struct {
		says  []string // "gone" for one that is not there
		speak volume.Protocol
		want  error
		text  string
	}{
		"one":                     {says: []string{v1}, speak: volume.ProtocolV1},
		"one of v2":               {says: []string{v2}, speak: volume.ProtocolV2},
		"some are dead":           {says: []string{"gone", silent, v1}, speak: volume.ProtocolV1},
		"nothing listens":         {says: []string{"gone"}, speak: volume.ProtocolV1, want: ErrUnreachable, text: "connection refused"},
		"halted":                  {says: []string{silent}, speak: volume.ProtocolV1, want: ErrUnreachable, text: "silent"},
		"closes":                  {says: []string{""}, speak: volume.ProtocolV1, want: ErrUnreachable, text: "closes the connection"},
		"of another program":      {says: []string{"SSH-2.0-OpenSSH"}, speak: volume.ProtocolV1, want: ErrUnreachable, text: "is no monitor"},
		"v2 without ms_mode":      {says: []string{v2, v2}, speak: volume.ProtocolV1, want: ErrInvalid, text: "ms_mode=prefer-crc"},
		"v1 with ms_mode":         {says: []string{v1}, speak: volume.ProtocolV2, want: ErrInvalid, text: "leave ms_mode out"},
		"some dead, others of v2": {says: []string{"gone", v2}, speak: volume.ProtocolV1, want: ErrUnreachable, text: "speaks message protocol v2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			monitors := make([]string, len(test.says))
			for i, say := range test.says {
				if monitors[i] = gone; say != "gone" {
					monitors[i] = FakeMonitor(t, say)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := greet(ctx, monitors, test.speak)
			if test.want == nil {
				must(t, err)
				return
			}
			wantError(t, err, test.want, Request{}, append(slices.Clone(monitors), test.text)...)
		})
	}
}

// TestGreetManyTimes checks that the error of an unreachable address is the same each time.
func TestGreetManyTimes(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := greet(ctx, []string{"192.0.2.1:6789"}, volume.ProtocolV1)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "192.0.2.1:6789 does not answer") {
		t.Errorf("got %v", err)
	}
}
