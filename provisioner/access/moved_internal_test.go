// SPDX-License-Identifier: Apache-2.0

package access

import (
	"testing"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Whoever has nothing new to try must not wait for the same monitors twice.
func TestHasOthers(t *testing.T) {
	for _, test := range []struct {
		name, list, known string
		want              bool
	}{
		{"the same", "10.0.0.1:6789", "10.0.0.1:6789", false},
		{"the same, written otherwise", "v1:10.0.0.1", "10.0.0.1:6789", false},
		{"one less", "10.0.0.1", "10.0.0.1,10.0.0.2", false},
		{"one more", "10.0.0.1,10.0.0.2", "10.0.0.1", true},
		{"both versions, where an in-tree volume has one", "v1:10.0.0.1:6789 v2:10.0.0.1:3300", "10.0.0.1:6789", false},
		{"version 2 only, the same", "10.0.0.1:3300", "v2:10.0.0.1", false},
		{"version 2 only, another", "v2:10.0.0.2", "v2:10.0.0.1", true},
		{"both versions, of which the second moved", "10.0.0.1:6789 10.0.0.2:3300", "10.0.0.1:6789 10.0.0.1:3300", true},
		{"version 2, where there was only version 1", "v2:10.0.0.1", "v1:10.0.0.1", true},
		{"a name", "mon.ceph.svc", "mon.ceph.svc", false},
		{"another name", "mon.ceph.svc", "old.ceph.svc", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := hasOthers(parsed(t, test.list), parsed(t, test.known)); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func parsed(t *testing.T, list string) []volume.Monitor {
	t.Helper()
	monitors, err := volume.ParseMonitors(list)
	if err != nil {
		t.Fatal(err)
	}
	return monitors
}
