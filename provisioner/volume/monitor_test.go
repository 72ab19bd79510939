// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

func TestParseMonitors(t *testing.T) {
	type monitors = []volume.Monitor
	for _, test := range []struct {
		name string
		list string
		want monitors
	}{
		{"nothing", "", nil},
		{"one IPv4 address", "10.0.0.1", monitors{{Host: "10.0.0.1"}}},
		{"commas, semicolons, blanks and new lines", "10.0.0.1:6789,10.0.0.2; 10.0.0.3\n10.0.0.4\t10.0.0.5,,",
			monitors{{Host: "10.0.0.1", Port: 6789}, {Host: "10.0.0.2"}, {Host: "10.0.0.3"}, {Host: "10.0.0.4"}, {Host: "10.0.0.5"}}},
		{"both protocols", "v1:10.0.0.1:6789,v2:10.0.0.1:3300",
			monitors{{volume.ProtocolV1, "10.0.0.1", 6789}, {volume.ProtocolV2, "10.0.0.1", 3300}}},
		{"IPv6", "[2001:db8::1]:6789 [2001:db8::2] v1:[2001:db8::3]:7000",
			monitors{{Host: "2001:db8::1", Port: 6789}, {Host: "2001:db8::2"}, {volume.ProtocolV1, "2001:db8::3", 7000}}},
		{"DNS names", "ceph-mon.ceph.svc.cluster.local:6789,mon-a,v1:mon.example.com.",
			monitors{{Host: "ceph-mon.ceph.svc.cluster.local", Port: 6789}, {Host: "mon-a"}, {Protocol: volume.ProtocolV1, Host: "mon.example.com."}}},
		{"a name that begins like a protocol", "v1mon:6789", monitors{{Host: "v1mon", Port: 6789}}},
		{"what ceph mon dump prints", "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]",
			monitors{{volume.ProtocolV2, "10.0.0.1", 3300}, {volume.ProtocolV1, "10.0.0.1", 6789}}},
		{"the same with IPv6", "[v2:[2001:db8::1]:3300/0,v1:[2001:db8::1]:6789/0]",
			monitors{{volume.ProtocolV2, "2001:db8::1", 3300}, {volume.ProtocolV1, "2001:db8::1", 6789}}},
		{"duplicates are dropped", "10.0.0.1:6789,10.0.0.1:6789", monitors{{Host: "10.0.0.1", Port: 6789}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := volume.ParseMonitors(test.list)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("monitors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseMonitorsRefuses(t *testing.T) {
	for _, test := range []struct{ name, list, want string }{
		{"a port that is none", "10.0.0.1:x", "the port is not a number from 1 to 65535"},
		{"port 0", "10.0.0.1:0", "the port is not a number from 1 to 65535"},
		{"IPv6 without brackets", "::1", "an IPv6 address must stand in brackets"},
		{"a bracket that stays open", "[2001:db8::1", "the bracket is not closed"},
		{"IPv4 in brackets", "[10.0.0.1]:6789", "the text in brackets is not an IPv6 address"},
		{"no colon behind the bracket", "[2001:db8::1]6789", "want a colon and a port behind the bracket"},
		{"a zone", "[fe80::1%eth0]:6789", "a zone"},
		{"an address to listen on", "0.0.0.0:6789", "this address is the one to listen on"},
		{"too many numbers", "10.0.0.1.5", "neither an IP address nor a DNS name"},
		{"a name with a blemish", "mon_a", "neither an IP address nor a DNS name"},
		{"a URL", "http://mon", "an address without a path"},
		{"a letter that is ASCII in lower case only", "\u212a8s.example", "neither an IP address nor a DNS name"},
		{"nothing but a port", ":6789", "neither an IP address nor a DNS name"},
		{"nothing but a protocol", "v1:", "neither an IP address nor a DNS name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := volume.ParseMonitors("10.0.0.9," + test.list)
			if err == nil {
				t.Fatalf("got %v, want an error", got)
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), `"`+test.list+`"`) {
				t.Errorf("got %q, want it to name %q and to say %q", err, test.list, test.want)
			}
		})
	}
}

func TestMonitorAddresses(t *testing.T) {
	for _, test := range []struct {
		name     string
		monitor  volume.Monitor
		librados string
		kernel   string // with version 1; empty: not for the kernel
		kernelV2 string
	}{
		{"no port: librados tries both protocols", volume.Monitor{Host: "10.0.0.1"}, "10.0.0.1", "10.0.0.1:6789", "10.0.0.1:3300"},
		{"the port of version 1", volume.Monitor{Host: "10.0.0.1", Port: 6789}, "10.0.0.1:6789", "10.0.0.1:6789", ""},
		{"the port of version 2", volume.Monitor{Host: "10.0.0.1", Port: 3300}, "10.0.0.1:3300", "", "10.0.0.1:3300"},
		{"another port may speak either", volume.Monitor{Host: "10.0.0.1", Port: 40000}, "10.0.0.1:40000", "10.0.0.1:40000", ""},
		{"v1 without a port", volume.Monitor{Protocol: "v1", Host: "10.0.0.1"}, "v1:10.0.0.1:6789", "10.0.0.1:6789", ""},
		{"v1 on the port of version 2", volume.Monitor{Protocol: "v1", Host: "10.0.0.1", Port: 3300}, "v1:10.0.0.1:3300", "10.0.0.1:3300", ""},
		{"v2 without a port", volume.Monitor{Protocol: "v2", Host: "10.0.0.1"}, "v2:10.0.0.1:3300", "", "10.0.0.1:3300"},
		{"IPv6 without a port", volume.Monitor{Host: "2001:db8::1"}, "[2001:db8::1]", "[2001:db8::1]:6789", "[2001:db8::1]:3300"},
		{"IPv6 with a port", volume.Monitor{Protocol: "v1", Host: "2001:db8::1", Port: 6789}, "v1:[2001:db8::1]:6789", "[2001:db8::1]:6789", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := test.monitor.String(); got != test.librados {
				t.Errorf("for librados: got %q, want %q", got, test.librados)
			}
			got, ok := test.monitor.KernelAddress(volume.ProtocolV1)
			if got != test.kernel || ok != (test.kernel != "") {
				t.Errorf("for the kernel: got %q, %v, want %q", got, ok, test.kernel)
			}
			got, ok = test.monitor.KernelAddress(volume.ProtocolV2)
			if got != test.kernelV2 || ok != (test.kernelV2 != "") {
				t.Errorf("for the kernel, with version 2: got %q, %v, want %q", got, ok, test.kernelV2)
			}
		})
	}
}

func FuzzParseMonitors(f *testing.F) {
	for _, seed := range []string{
		"10.0.0.1:6789,mon-a", "[v2:10.0.0.1:3300/0,v1:10.0.0.1:6789/0]", "[2001:db8::1]", "v1:", "]]", "[", "a:b:c", "/", "1.2.3.4/5", "[v1:]",
		"\u212a8s", "mon.\u0130", "[::ffff:1.2.3.4]:1", "a.:6789", "mon,name=admin,secret=x", "mon\u00a0a", "v1:a/0,v1:a", "mon\x00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		monitors, err := volume.ParseMonitors(list)
		if err != nil {
			return
		}
		// A monitor that was read stays the same when it is written and read again.
		texts := make([]string, len(monitors))
		for i, m := range monitors {
			texts[i] = m.String()
			again, err := volume.ParseMonitors(texts[i])
			if err != nil || len(again) != 1 || again[0].String() != texts[i] {
				t.Fatalf("%q was read as %q, and that as %q, %v", list, texts[i], again, err)
			}
			checkMonitor(t, m, again[0])
		}
		if _, err := volume.ParseMonitors(strings.Join(texts, ",")); err != nil {
			t.Fatalf("%q was read as %q, which can't be read: %v", list, texts, err)
		}
	})
}

// checkMonitor checks that a monitor is one address and nothing else, both for librados and
// for the kernel, which takes a list with commas and then options. A monitor that was
// printed and read again must lead to the same place.
func checkMonitor(t *testing.T, m, again volume.Monitor) {
	t.Helper()
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:[]"
	kernel, ok := m.KernelAddress(volume.ProtocolV1)
	for _, text := range []string{m.String(), kernel} {
		if strings.ContainsFunc(text, func(r rune) bool { return !strings.ContainsRune(letters, r) }) {
			t.Errorf("address %q has more than an address", text)
		}
	}
	if againKernel, againOK := again.KernelAddress(volume.ProtocolV1); againKernel != kernel || againOK != ok {
		t.Errorf("%v is %q for the kernel, and %q when it is read again", m, kernel, againKernel)
	}
	if !ok {
		return
	}
	if host, port, err := net.SplitHostPort(kernel); err != nil || host != m.Host || port == "" || port == "0" {
		t.Errorf("the kernel gets %q for host %q: %v", kernel, m.Host, err)
	}
}
