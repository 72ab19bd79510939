// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// host are the calls to the kernel that mount-utils does not have. Tests replace them: a
// device that does not answer can't be had at will.
type host struct {
	// statfs asks a file system for its sizes.
	statfs func(path string) (unix.Statfs_t, error)
	// readDevice reads a device's first bytes, past all caches; of a smaller device, all.
	readDevice func(path string, size int) ([]byte, error)
	// clearUnfinished removes the beginnings of a file system that was never finished.
	clearUnfinished func(path string) error
}

func system() host {
	return host{statfs: statfs, readDevice: readDevice, clearUnfinished: clearUnfinished}
}

func statfs(path string) (sizes unix.Statfs_t, err error) {
	err = ignoringEINTR(func() error { return unix.Statfs(path, &sizes) })
	return sizes, err
}

// blockSize is what a read past the caches must be a multiple of, in size and place.
const blockSize = 4096

func readDevice(path string, size int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	// Memory of its own, since it must begin at a multiple of the block size.
	aligned, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("memory to read into: %w", err)
	}
	defer func() { _ = unix.Munmap(aligned) }()
	n, err := f.ReadAt(aligned, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return bytes.Clone(aligned[:n]), nil
}

// xfsInProgress is where an XFS file system has a byte that is not 0 from mkfs's first write
// to its last. Source: xfs_dsb of Linux's fs/xfs/libxfs/xfs_format.h.
const xfsInProgress = 126

// clearUnfinished finds an XFS file system whose mkfs was killed. Linux does not mount it, and
// blkid takes it for a whole one, so that no mkfs would run again. It has never been
// mounted: there are no data.
func clearUnfinished(path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	beginning := make([]byte, 512)
	if _, err := f.ReadAt(beginning, 0); err != nil {
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	if string(beginning[:len(xfsMagic)]) != xfsMagic || beginning[xfsInProgress] == 0 {
		return nil
	}
	if _, err := f.WriteAt(make([]byte, len(beginning)), 0); err != nil {
		return err
	}
	return f.Sync()
}

func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
