// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"k8s.io/apimachinery/pkg/util/validation"
)

// Protocol is the version of Ceph's message protocol at a monitor's address.
type Protocol string

// The protocols. The kernel's rbd driver, the way kubelet maps images, speaks only
// version 1.
const (
	ProtocolAny Protocol = ""   // not given: the port decides, or Ceph tries both
	ProtocolV1  Protocol = "v1" // port 6789 by default
	ProtocolV2  Protocol = "v2" // port 3300 by default
)

// The default ports of Ceph monitors.
const (
	PortV1 uint16 = 6789
	PortV2 uint16 = 3300
)

// Monitor is one monitor's address as people write it.
type Monitor struct {
	Protocol Protocol
	// Host is an IPv4 or IPv6 address without brackets, or a DNS name.
	Host string
	// Port is 0 if not given.
	Port uint16
}

// Addr returns the monitor's IP address, or false if Host is a DNS name.
func (m Monitor) Addr() (netip.Addr, bool) {
	addr, err := netip.ParseAddr(m.Host)
	return addr, err == nil
}

// String returns the address in a form that ParseMonitors reads and that librados
// accepts as one element of mon_host.
func (m Monitor) String() string {
	port := m.Port
	switch {
	case port != 0:
	case m.Protocol == ProtocolV1:
		port = PortV1
	case m.Protocol == ProtocolV2:
		port = PortV2
	}
	var b strings.Builder
	if m.Protocol != ProtocolAny {
		b.WriteString(string(m.Protocol) + ":")
	}
	switch {
	case port != 0:
		b.WriteString(net.JoinHostPort(m.Host, strconv.Itoa(int(port))))
	case strings.Contains(m.Host, ":"):
		b.WriteString("[" + m.Host + "]")
	default:
		b.WriteString(m.Host)
	}
	return b.String()
}

// KernelAddress returns the address for the kernel's rbd driver, "IP:port", or false if
// the monitor does not speak protocol version 1 there. Without a protocol, port 3300
// means version 2, as in librados; any other port, or none, means version 1.
func (m Monitor) KernelAddress() (string, bool) {
	port := m.Port
	switch {
	case m.Protocol == ProtocolV2, m.Protocol == ProtocolAny && port == PortV2:
		return "", false
	case port == 0:
		port = PortV1
	}
	return net.JoinHostPort(m.Host, strconv.Itoa(int(port))), true
}

// ParseMonitors reads a list of monitors separated by commas, semicolons or white space.
// Each is a host with an optional port and an optional prefix "v1:" or "v2:". IPv6
// addresses need brackets. ParseMonitors also reads what "ceph mon dump" prints,
// "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]", and drops duplicates. The error names each
// invalid element.
func ParseMonitors(list string) ([]Monitor, error) {
	var monitors []Monitor
	var problems []error
	for _, text := range strings.FieldsFunc(list, func(r rune) bool {
		return strings.ContainsRune(",; \t\r\n", r)
	}) {
		m, err := parseMonitor(text)
		if err != nil {
			problems = append(problems, fmt.Errorf("monitor %q: %w", text, err))
			continue
		}
		if !slices.Contains(monitors, m) {
			monitors = append(monitors, m)
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return monitors, nil
}

func parseMonitor(text string) (Monitor, error) {
	rest := text
	// Splitting at commas separates the brackets of an address vector: one element
	// keeps a "[" before its protocol, another a "]" that nothing opens.
	if strings.HasPrefix(rest, "[v1:") || strings.HasPrefix(rest, "[v2:") {
		rest = rest[1:]
	}
	if strings.Count(rest, "]") > strings.Count(rest, "[") {
		rest = strings.TrimSuffix(rest, "]")
	}
	if before, nonce, found := strings.Cut(rest, "/"); found {
		if _, err := strconv.ParseUint(nonce, 10, 32); err != nil {
			return Monitor{}, errors.New("want an address without a path")
		}
		rest = before
	}

	var m Monitor
	for _, p := range []Protocol{ProtocolV1, ProtocolV2} {
		if after, found := strings.CutPrefix(rest, string(p)+":"); found {
			m.Protocol, rest = p, after
			break
		}
	}

	host, port, err := splitHostPort(rest)
	if err != nil {
		return Monitor{}, err
	}
	m.Host, m.Port = host, port
	return m, checkHost(m.Host)
}

// splitHostPort is like net.SplitHostPort, but the port is optional and must be a number.
func splitHostPort(text string) (host string, port uint16, err error) {
	var portText string
	if inner, found := strings.CutPrefix(text, "["); found {
		var closed bool
		host, portText, closed = strings.Cut(inner, "]")
		if !closed {
			return "", 0, errors.New("the bracket is not closed")
		}
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is6() {
			return "", 0, errors.New("what stands in brackets is no IPv6 address")
		}
		if portText == "" {
			return host, 0, nil
		}
		if portText[0] != ':' {
			return "", 0, errors.New("want a colon and a port behind the bracket")
		}
		portText = portText[1:]
	} else {
		var hasPort bool
		host, portText, hasPort = strings.Cut(text, ":")
		if strings.Contains(portText, ":") {
			return "", 0, errors.New("an IPv6 address must stand in brackets, as in [2001:db8::1]:6789")
		}
		if !hasPort {
			return host, 0, nil
		}
	}
	n, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || n == 0 {
		return "", 0, errors.New("the port is not a number from 1 to 65535")
	}
	return host, uint16(n), nil
}

func checkHost(host string) error {
	if addr, err := netip.ParseAddr(host); err == nil {
		switch {
		case addr.Zone() != "":
			return errors.New("an address with a zone means something on one machine only")
		case addr.IsUnspecified():
			return errors.New("this address is the one to listen on, not one to connect to")
		}
		return nil
	}
	// Some non-ASCII letters become ASCII in lower case, such as the kelvin sign.
	if strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }) {
		return errors.New("neither an IP address nor a DNS name")
	}
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	lastLabel := name[strings.LastIndexByte(name, '.')+1:]
	if strings.Trim(lastLabel, "0123456789") == "" {
		return errors.New("neither an IP address nor a DNS name")
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return errors.New("neither an IP address nor a DNS name")
	}
	return nil
}
