// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"testing"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

func TestIsFileSystem(t *testing.T) {
	for fsType, want := range map[string]bool{
		"ext3": true, "ext4": true, "xfs": true, "XFS": true, "": false, "ext2": false, "btrfs": false, "ext4 ": false,
	} {
		if got := volume.IsFileSystem(fsType); got != want {
			t.Errorf("%q: got %v, want %v", fsType, got, want)
		}
	}
}
