// SPDX-License-Identifier: Apache-2.0

// Package node tests what users want volumes for: Pods that write to them. The node is
// real but emulated (see cluster.Node), its kubelet one without in-tree rbd, and
// provisioner and node plugin run on it as a user installs them: see package fixture.
//
// Tests that need no Pod are in test/e2e, which is much quicker; those of in-tree volumes
// in test/node/intree.
package node

import (
	"fmt"
	"os"
	"testing"

	storagev1 "k8s.io/api/storage/v1"

	"ceph.com/rbd-provisioner/test/node/fixture"
)

// root is the root folder of the repository.
const root = "../.."

// suite is shared by all tests, and set before the first one runs.
var suite *fixture.Suite

func TestMain(m *testing.M) {
	if os.Getenv(holdVariable) != "" {
		fmt.Fprintln(os.Stderr, hold())
		os.Exit(1)
	}
	os.Exit(fixture.Run(m, root, func(s *fixture.Suite) { suite = s }))
}

func TestCloneBesideItsSource(t *testing.T) { suite.CloneBesideItsSource(t) }

func TestFileSystemGrowsUnderAPod(t *testing.T) { suite.GrowsUnderAPod(t) }

func TestMistakes(t *testing.T) {
	suite.Mistakes(t, []fixture.Mistake{
		{
			Name: "monitors with v2 addresses only, and no ms_mode", On: "data", Want: "none speaks message protocol 1",
			Change: func(class *storagev1.StorageClass) {
				class.Parameters["monitors"] = "v2:" + suite.Rig.Ceph.MonitorV2
			},
		},
		{
			Name: "the key of somebody else", On: "pod", Want: "ask who uses image",
			Secret: map[string][]byte{"key": []byte(fixture.ForeignKey)},
		},
	})
}
