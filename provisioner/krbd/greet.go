// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// banners are how servers of Ceph begin a connection, before they are told anything.
// Sources: CEPH_BANNER and CEPH_BANNER_V2_PREFIX in Ceph's src/include/msgr.h.
var banners = map[volume.Protocol][]byte{
	volume.ProtocolV1: []byte("ceph v027"),
	volume.ProtocolV2: []byte("ceph v2\n"),
}

// greet returns nil once one of the monitors speaks the protocol. The driver would try a
// silent monitor, or one of the other protocol, until its time is over, and map nothing else
// meanwhile. The error is ErrUnreachable with the reason for each monitor, or ErrInvalid if
// all of them speak the other protocol.
func greet(ctx context.Context, monitors []string, speak volume.Protocol) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the others
	faults := make([]error, len(monitors))
	ended := make(chan int)
	for i, monitor := range monitors {
		go func() {
			faults[i] = greetOne(ctx, monitor, speak)
			ended <- i
		}()
	}
	var answered bool
	other := true
	for range monitors {
		fault := faults[<-ended]
		if fault == nil {
			answered = true
			cancel()
		}
		other = other && errors.Is(fault, errProtocol)
	}
	if answered {
		return nil
	}
	reasons := make([]string, len(monitors))
	for i, monitor := range monitors {
		reasons[i] = monitor + " " + faults[i].Error()
	}
	why := strings.Join(reasons, "; ")
	switch {
	case other && speak == volume.ProtocolV1:
		return fmt.Errorf("%w: %s: list the monitors' addresses for v1 (port 6789), or give mapOptions ms_mode=prefer-crc", ErrInvalid, why)
	case other:
		return fmt.Errorf("%w: %s: list the monitors' addresses for v2 (port 3300), or leave ms_mode out of mapOptions", ErrInvalid, why)
	}
	return fmt.Errorf("%w: %s: check that the monitors run and that this node reaches their ports", ErrUnreachable, why)
}

// errProtocol says that a monitor speaks the other protocol.
var errProtocol = errors.New("speaks message protocol")

// greetOne returns an error that reads well behind the monitor's address, and does not vary.
func greetOne(ctx context.Context, monitor string, speak volume.Protocol) error {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", monitor)
	if err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) && errno != unix.ETIMEDOUT {
			return errno
		}
		return errors.New("does not answer")
	}
	defer func() { _ = conn.Close() }() // nothing was written
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	got := make([]byte, len(banners[volume.ProtocolV2]))
	_, err = io.ReadFull(conn, got)
	for protocol, banner := range banners {
		switch {
		case err != nil || !bytes.HasPrefix(banner, got):
		case protocol == speak:
			return nil
		default:
			return fmt.Errorf("%w %s", errProtocol, protocol)
		}
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("accepts connections, and is silent then")
	case err != nil:
		return errors.New("closes the connection at once")
	}
	return errors.New("is no monitor")
}
