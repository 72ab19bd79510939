// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"strings"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// An image's metadata say whose it is and whether it is handed over.
func TestForeign(t *testing.T) {
	const here, there = "uid-here", "uid-there"
	marks := func(pv, identity, cluster string) map[string]string {
		return map[string]string{volume.MetaVolume: pv, volume.MetaIdentity: identity, volume.MetaCluster: cluster}
	}
	us := volume.Owner{Volume: "pv", Identity: "us", Cluster: here}
	from := func(former string) volume.Owner { o := us; o.Former = former; return o }
	unknown := volume.Owner{Volume: "pv", Identity: "us", Former: there}
	for _, test := range []struct {
		name     string
		metadata map[string]string
		owner    volume.Owner
		// want is in the reason; empty for none.
		want  string
		takes bool
	}{
		{"ours", us.Marks(), us, "", false},
		{"nobody's", nil, us, "", false},
		{"an earlier version's, without a cluster", marks("pv", "us", ""), us, "", false},
		{"another cluster's, all else is the same", marks("pv", "us", there), us, "another Kubernetes cluster", false},
		{"another cluster's that says no more", marks("", "", there), us, there, false},
		{"another volume's", marks("other", "us", here), us, `pv/name is "other"`, false},
		{"another provisioner's", marks("pv", "them", here), us, `rbdProvisionerIdentity is "them"`, false},
		{"some cluster's, and ours is not known", marks("pv", "us", here), unknown, "may not read the UID", false},
		{"no cluster's, and ours is not known", marks("pv", "us", ""), unknown, "", false},
		{"handed over", marks("pv", "us", there), from(there), there, true},
		{"handed over with another name and identity", marks("other", "them", there), from(there), there, true},
		{"handed over by somebody whose it is not", marks("pv", "us", there), from("uid-third"), there, false},
		{"handed over by nobody", marks("pv", "us", ""), from(there), "", false},
		{"handed over to a volume whose it is", us.Marks(), from(here), "", false},
		{"handed over from another volume of this cluster", marks("other", "us", here), from(here), "other", true},
		{"another volume's that no cluster has marked", marks("other", "us", ""), from(there), "other", false},
		{"another volume's that no cluster has marked, handed over", marks("other", "us", ""), from(here), "other", true},
		{"handed over where our cluster is not known", marks("pv", "us", there), unknown, there, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			reason := volume.Foreign(test.metadata, test.owner)
			if (reason == "") != (test.want == "") || !strings.Contains(reason, test.want) {
				t.Errorf("got the reason %q, want %q in it", reason, test.want)
			}
			if got := test.owner.TakesOver(test.metadata); got != test.takes {
				t.Errorf("takes it over: got %v, want %v", got, test.takes)
			}
		})
	}
}
