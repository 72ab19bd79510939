// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"k8s.io/klog/v2"
	"k8s.io/utils/exec"

	"ceph.com/rbd-provisioner/provisioner/krbd"
)

// beginningSize is how much of a device is read before it is formatted: file systems,
// partition tables and encryption begin there.
const beginningSize = 1 << 20

// content returns what is on a device as blkid calls it, or "" if there is nothing, for
// sure. blkid alone can't tell: its status for "nothing" is also that for "can't be read"
// (kubernetes/kubernetes#142243), and mkfs over data is the end of them.
func (s *Server) content(v volumeRequest, d krbd.Device) (string, error) {
	attempt := "find out what is on " + d.Path() + " (image " + v.name() + ")"
	present, err := s.formatter.GetDiskFormat(d.Path())
	if err != nil {
		return "", internal(attempt, err)
	}
	if present != "" {
		return present, nil
	}
	beginning, err := s.host.readDevice(d.Path(), beginningSize)
	switch fsType := fileSystemIn(beginning); {
	case err != nil:
		return "", internal(attempt+", which can't be read and is not formatted; see the node's kernel log", err)
	case fsType != "":
		return "", internal(attempt, fmt.Errorf(`blkid finds nothing, and there is the beginning of %s: nothing is changed; look with "blkid -p" and fsck`, fsType))
	case len(bytes.Trim(beginning, "\x00")) == 0:
		return "", nil
	}
	// Remains of a mkfs that was killed, as a rule. The device can be read by now, and
	// blkid knows more kinds of data than we do.
	if present, err = s.formatter.GetDiskFormat(d.Path()); err != nil {
		return "", internal(attempt, err)
	}
	return present, nil
}

// Where the file systems that we make begin. Sources: ext4_super_block of Linux's
// fs/ext4/ext4.h, and xfs_dsb of fs/xfs/libxfs/xfs_format.h.
const (
	extMagic       = "\x53\xef"
	extMagicOffset = 1024 + 56
	xfsMagic       = "XFSB"
)

// fileSystemIn returns which of our file systems a device begins with, or "".
func fileSystemIn(beginning []byte) string {
	switch {
	case bytes.HasPrefix(beginning, []byte(xfsMagic)):
		return xfs
	case len(beginning) > extMagicOffset && bytes.HasPrefix(beginning[extMagicOffset:], []byte(extMagic)):
		return ext4
	}
	return ""
}

// makeFileSystem formats a device. It discards nothing: that takes a request for each object
// of the image, of which there are none yet.
func (s *Server) makeFileSystem(v volumeRequest, d krbd.Device, fsType string) error {
	args := []string{"-E", "nodiscard", "-F", "-m0", d.Path()}
	if fsType == xfs {
		args = []string{"-K", "-f", d.Path()}
	}
	if out, err := s.cfg.Exec.Command("mkfs."+fsType, args...).CombinedOutput(); err != nil {
		return internal("make a file system on "+d.Path()+" (image "+v.name()+")", fmt.Errorf("mkfs.%s: %w: %s", fsType, err, out))
	}
	return nil
}

// fsckUncorrected is a bit of fsck's exit status: there are errors that it does not mend by
// itself. Source: fsck(8).
const fsckUncorrected = 4

// repair checks a file system, and mends what can be mended without asking. Where fsck
// itself fails, mount has the last word.
func (s *Server) repair(ctx context.Context, o *operation, v volumeRequest, d krbd.Device) error {
	o.at("the check of the file system on %s", d.Path())
	out, err := s.cfg.Exec.Command("fsck", "-a", d.Path()).CombinedOutput()
	if err == nil {
		return nil
	}
	var exit exec.ExitError
	if errors.As(err, &exit) && exit.ExitStatus()&fsckUncorrected != 0 {
		return internal("check the file system of image "+v.name()+" ("+d.Path()+")", fmt.Errorf(
			"fsck found errors that it does not mend by itself: %s; map the image where no Pod uses it (rbd map %s), and run fsck there", out, v.name()))
	}
	klog.FromContext(ctx).Info("Checked a file system", "volume", v.handle, "device", d.Path(), "err", err, "output", oneLine(errors.New(string(out))))
	return nil
}
