// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"cmp"
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

// The protocols. The kernel speaks version 1, unless our node plugin is told to use the other.
const (
	ProtocolAny Protocol = "" // not given: the port decides, or Ceph tries both
	ProtocolV1  Protocol = "v1"
	ProtocolV2  Protocol = "v2"
)

// defaultPorts are those of Ceph monitors.
var defaultPorts = map[Protocol]uint16{ProtocolV1: 6789, ProtocolV2: 3300}

// Monitor is one monitor's address as people write it.
type Monitor struct {
	Protocol Protocol
	// Host is an IPv4 or IPv6 address without brackets, or a DNS name.
	Host string
	// Port is 0 if not given.
	Port uint16
}

// String returns the address in a form that ParseMonitors reads and that librados
// accepts as one element of mon_host.
func (m Monitor) String() string {
	address := m.Host
	if port := cmp.Or(m.Port, defaultPorts[m.Protocol]); port != 0 {
		address = hostPort(m.Host, port)
	} else if strings.Contains(m.Host, ":") {
		address = "[" + m.Host + "]"
	}
	if m.Protocol == ProtocolAny {
		return address
	}
	return string(m.Protocol) + ":" + address
}

// KernelAddress returns the address for the kernel's rbd driver, "IP:port", where it is to
// speak that version of the protocol, or false if the monitor does not speak it there.
// Without a protocol, a default port means that port's version, as in librados; without a
// port, the monitor speaks both; at any other port it is taken to speak version 1 only.
func (m Monitor) KernelAddress(speak Protocol) (string, bool) {
	speaks := m.Protocol
	switch {
	case speaks != ProtocolAny:
	case m.Port == 0:
		speaks = speak
	case m.Port == defaultPorts[ProtocolV2]:
		speaks = ProtocolV2
	default:
		speaks = ProtocolV1
	}
	if speaks != speak {
		return "", false
	}
	return hostPort(m.Host, cmp.Or(m.Port, defaultPorts[speak])), true
}

func hostPort(host string, port uint16) string {
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// ParseMonitors reads a list of monitors separated by commas, semicolons or white space:
// each a host with an optional port and an optional prefix "v1:" or "v2:", with IPv6
// addresses in brackets. It also reads what "ceph mon dump" prints,
// "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]", and drops duplicates. The error names each
// invalid element.
func ParseMonitors(list string) ([]Monitor, error) {
	var monitors []Monitor
	var problems []error
	for _, text := range strings.FieldsFunc(list, func(r rune) bool {
		return strings.ContainsRune(",; \t\r\n", r)
	}) {
		switch m, err := parseMonitor(text); {
		case err != nil:
			problems = append(problems, fmt.Errorf("monitor %q: %w", text, err))
		case !slices.Contains(monitors, m):
			monitors = append(monitors, m)
		}
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return monitors, nil
}

func parseMonitor(text string) (Monitor, error) {
	var m Monitor
	rest := text
	// Splitting at commas separates the brackets of an address vector: one element
	// keeps a "[" before its protocol, another a "]" that nothing opens.
	for p := range defaultPorts {
		if after, found := strings.CutPrefix(strings.TrimPrefix(text, "["), string(p)+":"); found {
			m.Protocol, rest = p, after
		}
	}
	if strings.Count(rest, "]") > strings.Count(rest, "[") {
		rest = strings.TrimSuffix(rest, "]")
	}
	rest, nonce, found := strings.Cut(rest, "/")
	if _, err := strconv.ParseUint(nonce, 10, 32); found && err != nil {
		return Monitor{}, errors.New("want an address without a path")
	}
	var err error
	if m.Host, m.Port, err = splitHostPort(rest); err != nil {
		return Monitor{}, err
	}
	return m, checkHost(m.Host)
}

// splitHostPort is like net.SplitHostPort, but the port is optional and must be a number.
func splitHostPort(text string) (host string, port uint16, err error) {
	host, rest := text, "" // which begins with a colon
	if inner, found := strings.CutPrefix(text, "["); found {
		var closed bool
		host, rest, closed = strings.Cut(inner, "]")
		if !closed {
			return "", 0, errors.New("the bracket is not closed")
		}
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is6() {
			return "", 0, errors.New("the text in brackets is not an IPv6 address")
		}
		if rest != "" && rest[0] != ':' {
			return "", 0, errors.New("want a colon and a port behind the bracket")
		}
	} else if colon := strings.Index(text, ":"); colon >= 0 {
		host, rest = text[:colon], text[colon:]
		if strings.Count(rest, ":") > 1 {
			return "", 0, errors.New("an IPv6 address must stand in brackets, as in [2001:db8::1]:6789")
		}
	}
	if rest == "" {
		return host, 0, nil
	}
	n, err := strconv.ParseUint(rest[1:], 10, 16)
	if err != nil || n == 0 {
		return "", 0, errors.New("the port is not a number from 1 to 65535")
	}
	return host, uint16(n), nil
}

func checkHost(host string) error {
	addr, err := netip.ParseAddr(host)
	switch {
	case addr.Zone() != "":
		return errors.New("an address with a zone means something on one machine only")
	case addr.IsUnspecified():
		return errors.New("this address is the one to listen on, not one to connect to")
	case err != nil && !isDNSName(host):
		return errors.New("neither an IP address nor a DNS name")
	}
	return nil
}

func isDNSName(host string) bool {
	name := strings.TrimSuffix(strings.ToLower(host), ".")
	lastLabel := name[strings.LastIndexByte(name, '.')+1:]
	// Some non-ASCII letters become ASCII in lower case, such as the kelvin sign.
	isASCII := !strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII })
	isNumber := strings.Trim(lastLabel, "0123456789") == ""
	return isASCII && !isNumber && len(validation.IsDNS1123Subdomain(name)) == 0
}
