// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Only what mkfs.xfs began and did not end is cleared. Killed between any two of its
// writes, mkfs.xfs 6.1 left nothing that blkid knows, or such a beginning; mkfs.ext4 1.47
// left nothing at all.
func TestClearUnfinished(t *testing.T) {
	beginning := func(magic string, inProgress byte) []byte {
		b := bytes.Repeat([]byte{7}, 4096)
		copy(b, magic)
		b[xfsInProgress] = inProgress
		return b
	}
	for name, test := range map[string]struct {
		content []byte
		cleared bool
	}{
		"unfinished":          {beginning("XFSB", 1), true},
		"finished":            {beginning("XFSB", 0), false},
		"something else":      {beginning("LUKS", 1), false},
		"nothing":             {make([]byte, 4096), false},
		"less than a sector":  {[]byte("XFSB"), false},
		"a device of no size": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "device")
			if err := os.WriteFile(path, test.content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := clearUnfinished(path); err != nil {
				t.Fatal(err)
			}
			want := test.content
			if test.cleared {
				want = append(make([]byte, 512), test.content[512:]...)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %x (%v)", got[:min(len(got), 130)], err)
			}
		})
	}
	if err := clearUnfinished(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("want an error")
	}
}

func TestHost(t *testing.T) {
	sizes, err := statfs(t.TempDir())
	if err != nil || sizes.Blocks == 0 {
		t.Errorf("got %+v, %v", sizes, err)
	}
	if _, err := SystemMounts().Table(); err != nil {
		t.Error(err)
	}
}

func TestReadDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "device")
	content := bytes.Repeat([]byte("rbd."), 4096)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int][]byte{blockSize: content[:blockSize], beginningSize: content} {
		got, err := readDevice(path, size)
		if errors.Is(err, unix.EINVAL) {
			t.Log("this file system has no reads past the caches")
			return
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d: got %d bytes, %v", size, len(got), err)
		}
	}
	if _, err := readDevice(path+"2", blockSize); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
