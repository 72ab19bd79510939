// SPDX-License-Identifier: Apache-2.0

// Package monitors finds the addresses of Ceph's monitors: librados and Linux take no names,
// or give up all monitors for one name that does not resolve.
package monitors

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// ErrNoAddress says that no monitor has an address, because none of their names resolves.
var ErrNoAddress = errors.New("no monitor has an address")

// Resolver finds the addresses of a DNS name; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Addresses are the monitors of a class or a volume, with their names resolved.
type Addresses struct {
	All []string // all of them, as librados takes them
	// V1 and V2 are those that speak that version of the message protocol, as Linux takes
	// them, "IP:port"; may be empty.
	V1, V2     []string
	Unresolved []error // why a name did not resolve, one for each that did not
}

// Kernel returns V1 or V2.
func (a Addresses) Kernel(speak volume.Protocol) []string {
	if speak == volume.ProtocolV2 {
		return a.V2
	}
	return a.V1
}

// Resolve replaces each DNS name by all its addresses. The result does not vary between
// calls and has no duplicates. A name that does not resolve is an error, ErrNoAddress,
// only if no address is left.
func Resolve(ctx context.Context, resolver Resolver, monitors []volume.Monitor) (Addresses, error) {
	var r Addresses
	add := func(m volume.Monitor, addr netip.Addr) {
		m.Host = addr.Unmap().String()
		v1, is1 := m.KernelAddress(volume.ProtocolV1)
		v2, is2 := m.KernelAddress(volume.ProtocolV2)
		if is1 && m.Port != 0 {
			// At an unusual port librados would try both protocols, and take the silence
			// of one for the monitor's, even if the other says that the key is wrong.
			m.Protocol = volume.ProtocolV1
		}
		if text := m.String(); !slices.Contains(r.All, text) {
			r.All = append(r.All, text)
		}
		if is1 && !slices.Contains(r.V1, v1) {
			r.V1 = append(r.V1, v1)
		}
		if is2 && !slices.Contains(r.V2, v2) {
			r.V2 = append(r.V2, v2)
		}
	}
	found := make([][]netip.Addr, len(monitors))
	faults := make([]error, len(monitors))
	// All names at once: a silent name server of one must not use up the others' time.
	var lookups sync.WaitGroup
	for i, m := range monitors {
		if addr, err := netip.ParseAddr(m.Host); err == nil {
			found[i] = []netip.Addr{addr}
			continue
		}
		lookups.Go(func() { found[i], faults[i] = resolver.LookupNetIP(ctx, "ip", m.Host) })
	}
	lookups.Wait()
	for i, m := range monitors {
		if faults[i] != nil {
			r.Unresolved = append(r.Unresolved, fmt.Errorf("monitor %q: %s", m.Host, lookupFault(faults[i])))
			continue
		}
		slices.SortFunc(found[i], netip.Addr.Compare)
		for _, addr := range found[i] {
			add(m, addr)
		}
	}
	if len(r.All) == 0 {
		texts := make([]string, len(r.Unresolved))
		for i, err := range r.Unresolved {
			texts[i] = err.Error()
		}
		// One line, since it becomes an event.
		return Addresses{}, fmt.Errorf("%w: %s", ErrNoAddress, strings.Join(texts, "; "))
	}
	return r, nil
}

// lookupFault returns the part of a resolver's error that stays the same from call to
// call: the whole error names the server and the client's port.
func lookupFault(err error) string {
	var dns *net.DNSError
	switch {
	case !errors.As(err, &dns):
		return "the name could not be resolved"
	case dns.IsNotFound:
		return "the name does not resolve"
	case dns.IsTimeout:
		return "the name server did not answer"
	default:
		return "the name could not be resolved: " + dns.Err
	}
}
