// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
)

// Ports are taken from here, except those that the kernel gives to outgoing connections:
// such a connection could take a port between our choice and the server's bind, or while
// a server restarts.
const (
	lowestPort  = 10000
	highestPort = 32000
)

// ports hands out TCP ports of one address that no other rig of this machine gets until
// it is closed. The reservation is an abstract unix socket named after the port. The
// kernel makes it exclusive, scopes it to the network namespace like the port itself, and
// drops it when the process ends, so it can't be left behind like a lock file. It does
// not hold the port itself, which stays free for the server and its restarts.
type ports struct {
	address string

	mu   sync.Mutex  // guards held
	held []io.Closer // one socket per port
}

func (p *ports) reserve() (int, error) {
	low, high := ephemeralPorts()
	offset := rand.IntN(highestPort - lowestPort)
	for i := range highestPort - lowestPort {
		port := lowestPort + (offset+i)%(highestPort-lowestPort)
		if port >= low && port <= high {
			continue
		}
		lock, err := net.Listen("unix", fmt.Sprintf("@rbd-provisioner-rig-port-%d", port))
		if err != nil {
			continue // another rig has it
		}
		// A program that is no rig may use it.
		probe, err := net.Listen("tcp4", net.JoinHostPort(p.address, strconv.Itoa(port)))
		if err != nil {
			_ = lock.Close()
			continue
		}
		if err := probe.Close(); err != nil {
			_ = lock.Close()
			return 0, fmt.Errorf("probe port %d: %w", port, err)
		}
		p.mu.Lock()
		p.held = append(p.held, lock)
		p.mu.Unlock()
		return port, nil
	}
	return 0, errors.New("find a free port: all are taken")
}

func (p *ports) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, lock := range p.held {
		_ = lock.Close() // nothing was written to it
	}
	p.held = nil
}

// ephemeralPorts returns the range of ports that the kernel gives to outgoing
// connections, or its usual default if it can't be read.
func ephemeralPorts() (low, high int) {
	low, high = 32768, 60999
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var l, h int
		if n, _ := fmt.Sscan(string(text), &l, &h); n == 2 {
			low, high = l, h
		}
	}
	return low, high
}
