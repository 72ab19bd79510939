// SPDX-License-Identifier: Apache-2.0

package node

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// blkid finds nothing, and that may be an error of reading: what has data is not formatted.
func TestNothingFound(t *testing.T) {
	ext := make([]byte, 2048)
	copy(ext[1080:], "\x53\xef")
	for name, test := range map[string]struct {
		image FakeImage
		says  []string // nothing: it is formatted
	}{
		"nothing is there":          {image: FakeImage{}},
		"a mkfs that was killed":    {image: FakeImage{beginning: []byte("remains")}},
		"reads fail":                {image: FakeImage{fsType: ext4, blkidFails: true, readErr: unix.EIO}, says: []string{"/dev/rbd0", "rbd/" + testImage, "not formatted", "input/output error", "kernel log"}},
		"reads fail, nothing there": {image: FakeImage{readErr: unix.EIO}, says: []string{"not formatted"}},
		"reads fail for blkid":      {image: FakeImage{fsType: ext4, blkidFails: true, beginning: ext}, says: []string{"the beginning of ext4", "nothing is changed", "fsck"}},
		"reads fail for blkid, xfs": {image: FakeImage{fsType: xfs, blkidFails: true, beginning: []byte("XFSB")}, says: []string{"the beginning of xfs"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.image.size = gib
			*w.image = test.image
			err := w.stage(t.Context())
			if test.says == nil {
				w.must(err)
				if w.image.made != 1 {
					t.Errorf("mkfs ran %d times", w.image.made)
				}
				return
			}
			w.refused(err, codes.Internal, test.says...)
			if w.image.made > 0 {
				t.Error("made a file system")
			}
			w.clean()
		})
	}
}

// blkid could not read the device at first, and finds something the second time.
func TestFoundLater(t *testing.T) {
	w := newWorld(t)
	w.image.fsType, w.image.blkidFails = "crypto_LUKS", true
	read := w.server.host.readDevice
	w.server.host.readDevice = func(path string, size int) ([]byte, error) {
		w.node.mu.Lock()
		w.image.blkidFails, w.image.beginning = false, []byte("LUKS")
		w.node.mu.Unlock()
		return read(path, size)
	}
	w.refused(w.stage(t.Context()), codes.FailedPrecondition, "crypto_LUKS", "no data are lost")
	if w.image.made > 0 {
		t.Error("made a file system")
	}
}

// What fsck answers, and what becomes of the volume.
func TestRepair(t *testing.T) {
	for status, mounts := range map[int]bool{0: true, 1: true, 3: true, 8: true, 4: false, 12: false} {
		w := newWorld(t)
		w.image.fsType, w.image.fsck = ext4, status
		err := w.stage(t.Context())
		if mounts {
			w.must(err)
			continue
		}
		w.refused(err, codes.Internal, "rbd/"+testImage, "INCONSISTENCY; run it by hand", "rbd map rbd/"+testImage)
		w.clean()
	}
	// What is only read is not mended.
	w := newWorld(t)
	w.image.fsType, w.image.fsck, w.capability = ext4, 4, fileSystem(ext4, readers)
	w.must(w.stage(t.Context()))
}

// A file system that is mounted with mountOptions [ro] is neither made nor grown.
func TestMountedReadOnly(t *testing.T) {
	w := newWorld(t)
	w.capability = fileSystem(ext4, writer, "ro")
	w.refused(w.stage(t.Context()), codes.FailedPrecondition, "no file system")
	w.image.fsType, w.image.fsSize = ext4, gib/2
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	w.image.superReadOnly = true
	w.must(w.expand(t.Context(), gib))
	if slices.Contains(w.node.did, "grow") || w.image.made > 0 {
		t.Errorf("did %q", w.node.did)
	}
}
