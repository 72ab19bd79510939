// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
)

// cpio packs files into an archive that the kernel unpacks into the first root file
// system ("newc"): hack/node/initrd.sh takes them from there. Keys are paths; their
// folders are added. Only root may read the files.
func cpio(files map[string][]byte) []byte {
	var b bytes.Buffer
	inode := 0
	add := func(name string, mode int, content []byte) {
		inode++
		// magic, inode, mode, uid, gid, links, mtime, size, device (major, minor),
		// special device (major, minor), length of the name with its NUL, checksum
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		pad(&b)
		b.Write(content)
		pad(&b)
	}
	folders := map[string]bool{".": true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		// A folder comes before its content.
		var missing []string
		for dir := path.Dir(name); !folders[dir]; dir = path.Dir(dir) {
			folders[dir] = true
			missing = append(missing, dir)
		}
		for _, dir := range slices.Backward(missing) {
			add(dir, 0o040755, nil)
		}
		add(name, 0o100600, files[name])
	}
	add("TRAILER!!!", 0, nil)
	return b.Bytes()
}

// pad fills up to the next multiple of four.
func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
