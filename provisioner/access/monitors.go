// SPDX-License-Identifier: Apache-2.0

package access

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

// Monitors are the monitors of a class or a volume, with their names resolved.
type Monitors struct {
	Addresses  []string // all of them, as librados takes them
	Kernel     []string // those that speak message protocol 1, as "IP:port"; may be empty
	Unresolved []error  // why a name did not resolve, one for each that did not
}

// Resolve replaces each DNS name by all its addresses: nodes can't resolve the cluster's
// own names, and librados refuses a list with a name that it can't resolve. The result
// does not vary between calls and has no duplicates. A name that does not resolve is an
// error, ErrNoAddress, only if no address is left.
func (a *Access) Resolve(ctx context.Context, monitors []volume.Monitor) (Monitors, error) {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()

	var r Monitors
	add := func(m volume.Monitor, addr netip.Addr) {
		m.Host = addr.Unmap().String()
		kernel, ok := m.KernelAddress()
		if ok && m.Port != 0 {
			// At an unusual port librados would try both protocols, and take the silence
			// of one for the monitor's, even if the other says that the key is wrong.
			m.Protocol = volume.ProtocolV1
		}
		if text := m.String(); !slices.Contains(r.Addresses, text) {
			r.Addresses = append(r.Addresses, text)
		}
		if ok && !slices.Contains(r.Kernel, kernel) {
			r.Kernel = append(r.Kernel, kernel)
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
		lookups.Go(func() { found[i], faults[i] = a.config.Resolver.LookupNetIP(ctx, "ip", m.Host) })
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
	if len(r.Addresses) == 0 {
		texts := make([]string, len(r.Unresolved))
		for i, err := range r.Unresolved {
			texts[i] = err.Error()
		}
		// One line, since it becomes an event.
		return Monitors{}, fmt.Errorf("%w: %s", ErrNoAddress, strings.Join(texts, "; "))
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
