// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// kernel is what is asked of Linux, but for reading files.
type kernel interface {
	// write writes a text to a file of sysfs at once. The error is an *fs.PathError if the
	// file can't be opened, else the kernel's answer.
	write(path, text string) error
	// addKey puts a key into the keyring of the calling thread.
	addKey(name string, payload []byte) (serial int, err error)
	// unlinkKey takes it out again.
	unlinkKey(serial int) error
}

type linux struct {
	keyType string // "ceph", but for tests
}

func (linux) write(path, text string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	// Not File.Write, which would write again what the kernel did not take.
	_, err = unix.Write(int(file.Fd()), []byte(text))
	// Nothing is buffered, so closing tells nothing.
	_ = file.Close()
	return err
}

func (l linux) addKey(name string, payload []byte) (int, error) {
	return unix.AddKey(l.keyType, name, payload, unix.KEY_SPEC_THREAD_KEYRING)
}

func (linux) unlinkKey(serial int) error {
	_, err := unix.KeyctlInt(unix.KEYCTL_UNLINK, serial, unix.KEY_SPEC_THREAD_KEYRING, 0, 0)
	return err
}

// newKeyName returns a name that no other key has. The device keeps it in config_info, so
// that it also tells who mapped it.
func newKeyName() string { return keyPrefix + rand.Text()[:16] }

const keyPrefix = "rbd-provisioner-"

// writeWithKey maps an image. It must be called in a goroutine that ends soon: the thread
// ends with it, and so does the keyring, which no other thread can use. The process keyring
// is the credentials of one thread of Go's many, and what is in the session's outlives us.
func (d *Driver) writeWithKey(ctx context.Context, line, keyName string, key rbd.Key) error {
	runtime.LockOSThread() // and never unlocked
	payload, err := base64.StdEncoding.DecodeString(key.Reveal())
	if err != nil {
		return errKey{errors.New("the user's key is malformed")} // ParseKey has checked it
	}
	serial, err := d.kernel.addKey(keyName, payload)
	clear(payload)
	if err != nil {
		return errKey{fmt.Errorf("hand the user's key to the kernel: %w", err)}
	}
	// The device goes on with a copy of its own.
	defer func() {
		if err := d.kernel.unlinkKey(serial); err != nil {
			klog.FromContext(ctx).Error(err, "Could not remove a key from the kernel's keyring; it goes when the thread ends")
		}
	}()
	return d.write([]string{"add_single_major", "add"}, line)
}

// write writes to the first of some files of the driver that exists: which of them there are
// depends on a parameter of the module. The error is the driver's number, or explained.
func (d *Driver) write(names []string, text string) error {
	for _, name := range names {
		err := d.kernel.write(d.bus(name), text)
		var path *fs.PathError
		if !errors.As(err, &path) {
			return err
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return explainOpen(err)
		}
	}
	return ErrNoDriver
}
