// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// The errors on which callers decide. They come wrapped, with what was attempted in front
// and what to do behind.
var (
	// ErrDenied: wrong key, or unknown user.
	ErrDenied = errors.New("permission denied")
	// ErrCaps: the user's caps do not allow it.
	ErrCaps = errors.New("the user's caps do not allow it")
	// ErrNotFound: there is no such image, or no such pool.
	ErrNotFound = errors.New("the image or the pool does not exist")
	// ErrUnreachable: monitors or OSDs did not answer in time.
	ErrUnreachable = errors.New("no answer from Ceph")
	// ErrInvalid: the driver can't do what is asked, now and later.
	ErrInvalid = errors.New("the node's rbd driver can't do this")
	// ErrBusy: something uses the device.
	ErrBusy = errors.New("the device is in use")
	// ErrNoDriver: the node has no rbd driver.
	ErrNoDriver = errors.New(`this node has no rbd driver: run "modprobe rbd" there, and write rbd into /etc/modules-load.d/rbd.conf`)
	// ErrOtherCluster: the monitors are those of another Ceph cluster than the image's.
	ErrOtherCluster = errors.New("these monitors are of another Ceph cluster")
)

// String names what the request is about, without its key.
func (r Request) String() string {
	return fmt.Sprintf("image %q of pool %q as user %q with monitors %q", r.Image, r.Pool, r.User, strings.Join(r.Monitors, ","))
}

// errKey is the failure to give the kernel a key, before anything was asked of Ceph.
type errKey struct{ error }

func (e errKey) Unwrap() error { return e.error }

// explain makes a sentence of what the kernel said. Sources of the numbers: what Linux 6.1
// did with each cause; drivers/block/rbd.c, net/ceph/mon_client.c.
func (r Request) explain(err error) error {
	var key errKey
	if errors.As(err, &key) {
		return r.explainKey(err)
	}
	// An error of another kind is explained already.
	errno, ok := err.(unix.Errno) //nolint:errorlint // wrapped, it is not what the driver said
	if !ok {
		return err
	}
	switch errno {
	case unix.EACCES:
		return fmt.Errorf(`%w: Ceph does not know the user, or has another key for it: store what "ceph auth get-key client.%s" prints in the secret`, ErrDenied, r.User)
	case unix.EPERM:
		return fmt.Errorf(`%w: "ceph auth get client.%s" must show mon "profile rbd" and osd "profile rbd pool=%s"`, ErrCaps, r.User, r.Pool)
	case unix.ENOENT:
		return fmt.Errorf(`%w: compare with "rbd ls %s"`, ErrNotFound, r.Pool)
	case unix.ETIMEDOUT:
		// Over protocol 1, monitors of Ceph 20 hang up before their refusal of a key is read.
		return fmt.Errorf(`%w: check with "ceph -s" that monitors have a quorum and OSDs are up, that this node reaches their ports, `+
			`and that the secret has what "ceph auth get-key client.%s" prints, since Ceph 20 hangs up on a wrong key`, ErrUnreachable, r.User)
	case unix.EINVAL:
		return fmt.Errorf("%w: it may not know one of the options %q: see what rbd: and libceph: say in its log", ErrInvalid, r.Options)
	case unix.ENXIO:
		return fmt.Errorf(`%w: it does not know a feature of the image: see "rbd info %s/%s", and disable it with "rbd feature disable"`, ErrInvalid, r.Pool, r.Image)
	default:
		return fmt.Errorf("%w: see what rbd: and libceph: say in the node's kernel log", errno)
	}
}

// enotsupp is of the kernel alone: its name is ENOTSUPP, and not EOPNOTSUPP.
const enotsupp = unix.Errno(524)

// explainKey makes a sentence of what add_key said.
func (r Request) explainKey(err error) error {
	var errno unix.Errno
	errors.As(err, &errno) // else 0, which is no case below
	kind := r.Key.Type()
	switch {
	case errno == unix.ENODEV:
		return ErrNoDriver
	case errno == unix.EPERM, errno == unix.EACCES, errno == unix.ENOSYS:
		return fmt.Errorf("the node's keyrings are closed to this container: run it privileged, without a seccomp profile: %w", err)
	case errno == unix.EDQUOT:
		return fmt.Errorf("the node's keyrings are full: raise kernel.keys.root_maxkeys and kernel.keys.root_maxbytes there: %w", err)
	case (errno == unix.EINVAL || errno == enotsupp || errno == unix.EOPNOTSUPP) && kind != rbd.KeyTypeAES:
		return fmt.Errorf("%w: it can't use a key of type %s: give client.%s one of type aes: "+
			`"ceph mon set auth_allowed_ciphers aes,aes256k", then "ceph auth rotate client.%[3]s --key-type aes", and store it in the secret`, ErrInvalid, kind, r.User)
	}
	return err
}

// explainOpen says why a file of the driver could not be opened.
func explainOpen(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		return fmt.Errorf("this container may not write to the node's /sys: it must be privileged, with hostNetwork: %w", err)
	}
	return err
}
