// SPDX-License-Identifier: Apache-2.0

package monitors_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/monitors"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// FakeResolver answers from a map: no real name server has these names.
type FakeResolver map[string][]string

func (f FakeResolver) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if network != "ip" {
		return nil, errors.New("want both families")
	}
	texts, known := f[host]
	if !known {
		return nil, &net.DNSError{Err: "no such host", Name: host, Server: "10.96.0.10:53", IsNotFound: true}
	}
	if len(texts) == 0 {
		return nil, &net.DNSError{Err: "read udp 10.0.0.1:43211->10.96.0.10:53: i/o timeout", Name: host, IsTimeout: true}
	}
	var addrs []netip.Addr
	for _, text := range texts {
		addrs = append(addrs, netip.MustParseAddr(text))
	}
	return addrs, nil
}

func TestResolve(t *testing.T) {
	resolver := FakeResolver{
		"mons":    {"10.0.0.3", "10.0.0.2", "2001:db8::1", "::ffff:10.0.0.2"},
		"silent":  {},
		"another": {"10.0.0.2"},
	}
	for _, test := range []struct {
		name    string
		text    string
		want    monitors.Addresses
		wantErr string
	}{
		{
			"addresses need no resolver",
			"10.0.0.1:6789,v2:10.0.0.1:3300,[2001:db8::9]",
			monitors.Addresses{
				All: []string{"v1:10.0.0.1:6789", "v2:10.0.0.1:3300", "[2001:db8::9]"},
				V1:  []string{"10.0.0.1:6789", "[2001:db8::9]:6789"},
				V2:  []string{"10.0.0.1:3300", "[2001:db8::9]:3300"},
			}, "",
		},
		{
			"a name stands for all its addresses, in a fixed order and once",
			"mons:6789 another:6789",
			monitors.Addresses{
				All: []string{"v1:10.0.0.2:6789", "v1:10.0.0.3:6789", "v1:[2001:db8::1]:6789"},
				V1:  []string{"10.0.0.2:6789", "10.0.0.3:6789", "[2001:db8::1]:6789"},
			}, "",
		},
		{
			"two ways to write one address are one for the kernel",
			"10.0.0.1,v1:10.0.0.1",
			monitors.Addresses{All: []string{"10.0.0.1", "v1:10.0.0.1:6789"}, V1: []string{"10.0.0.1:6789"}, V2: []string{"10.0.0.1:3300"}}, "",
		},
		{
			"an unusual port speaks version 1, as the kernel does",
			"10.0.0.1:40000 10.0.0.1:3300",
			monitors.Addresses{All: []string{"v1:10.0.0.1:40000", "10.0.0.1:3300"}, V1: []string{"10.0.0.1:40000"}, V2: []string{"10.0.0.1:3300"}}, "",
		},
		{"only version 2", "v2:10.0.0.1", monitors.Addresses{All: []string{"v2:10.0.0.1:3300"}, V2: []string{"10.0.0.1:3300"}}, ""},
		{"no name resolves", "nowhere silent", monitors.Addresses{},
			`no monitor has an address: monitor "nowhere": the name does not resolve; monitor "silent": the name server did not answer`},
	} {
		t.Run(test.name, func(t *testing.T) {
			list, err := volume.ParseMonitors(test.text)
			if err != nil {
				t.Fatal(err)
			}
			got, err := monitors.Resolve(t.Context(), resolver, list)
			if test.wantErr != "" {
				if err == nil || err.Error() != test.wantErr {
					t.Errorf("got %v, want %q", err, test.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("monitors (-want +got):\n%s", diff)
			}
		})
	}
}

func TestResolveGoesOnWithoutAName(t *testing.T) {
	list := []volume.Monitor{{Host: "nowhere"}, {Host: "10.0.0.1"}}
	got, err := monitors.Resolve(t.Context(), FakeResolver{}, list)
	if err != nil || len(got.Unresolved) != 1 || len(got.All) != 1 {
		t.Fatalf("got %+v, %v, want one address and one name unresolved", got, err)
	}
	const want = `monitor "nowhere": the name does not resolve`
	if got := got.Unresolved[0].Error(); got != want {
		t.Errorf("got %q, want %q, without what changes from call to call", got, want)
	}
}
