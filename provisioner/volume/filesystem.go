// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"slices"
	"strings"
)

// The file systems that our node plugin makes and mounts: its image has their tools.
const (
	Ext3 = "ext3"
	Ext4 = "ext4"
	XFS  = "xfs"
)

// FileSystems returns the file systems of our node plugin.
func FileSystems() []string { return []string{Ext3, Ext4, XFS} }

// IsFileSystem reports whether fsType, in any case, is one of FileSystems. No fsType is none.
func IsFileSystem(fsType string) bool {
	return slices.Contains(FileSystems(), strings.ToLower(fsType))
}
