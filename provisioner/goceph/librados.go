// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

// #cgo LDFLAGS: -lrados -ldl
// #define _GNU_SOURCE
// #include <dlfcn.h>
// #include <stddef.h>
// #include <rados/librados.h>
//
// // Ceph's own release, which librados has no call for: a C++ function of the
// // library under it. Any release may drop it; then there is none.
// static const char *ceph_release(void) {
// 	const char *(*f)(void) = (const char *(*)(void))dlsym(RTLD_DEFAULT, "_Z19ceph_version_to_strv");
// 	return f == NULL ? NULL : f();
// }
import "C"

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd/admin"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// New returns a Connector that uses librados. The caller must Close it.
//
// Whenever librados starts a connection, it reads some of the process's environment, and
// options and keys there would override ours. New removes those variables.
func New(cfg Config) (*Connector, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"CEPH_ARGS", "CEPH_CONF", "CEPH_KEYRING", "CEPH_LIB"} {
		// Change the environment only where needed: C code may be reading it.
		if _, found := os.LookupEnv(name); !found {
			continue
		}
		if err := os.Unsetenv(name); err != nil {
			return nil, fmt.Errorf("remove %s from the environment: %w", name, err)
		}
	}
	return newConnector(cfg,
		func(creds rbd.Credentials) (conn, error) { return dial(cfg, creds) },
		func(creds rbd.Credentials) (managerConn, error) { return dialManager(cfg, creds) }), nil
}

// Version returns the version of librados in this process, followed by its Ceph release
// if the library tells it, as in "3.0.0 (Ceph 16.2.15)".
func Version() string {
	major, minor, patch := rados.Version()
	version := fmt.Sprintf("%d.%d.%d", major, minor, patch)
	if release := C.ceph_release(); release != nil {
		version += " (Ceph " + C.GoString(release) + ")"
	}
	return version
}

type option struct {
	name, value string
	optional    bool // a librados that does not know it needs no such setting
}

// options returns what librados must know. limit is how many seconds a monitor or manager
// may take for a command; 0 for no limit.
func options(cfg Config, creds rbd.Credentials, limit int64) []option {
	return []option{
		// No keys but ours.
		{"keyring", "", true}, {"keyfile", "", true},
		// No listener, no files, no output: librados prints keys that it cannot read. Its
		// error numbers say all that it has to say.
		{"admin_socket", "", true}, {"log_file", "", true}, {"log_to_file", "false", true},
		{"log_to_stderr", "false", true}, {"err_to_stderr", "false", true},
		{"log_to_syslog", "false", true}, {"err_to_syslog", "false", true},
		{"log_to_graylog", "false", true}, {"err_to_graylog", "false", true},
		{"log_to_journald", "false", true}, {"err_to_journald", "false", true},
		// Nothing here reads or writes an image's data.
		{"rbd_cache", "false", true}, {"rbd_plugins", "", true},
		{"client_mount_timeout", strconv.FormatInt(cfg.timeoutSeconds(), 10), false},
		{"rados_mon_op_timeout", strconv.FormatInt(limit, 10), false},
		// No limit for OSDs. With one, librados would forget a request on its way, and
		// librbd, in the middle of making an image, would take that for a failure and
		// remove the image's name; the OSD would still make the header, and nothing would
		// ever find that. Measured: it happened to one of 40 images being made while an
		// OSD was halted for some seconds.
		{"rados_osd_op_timeout", "0", false},
		{"mon_host", creds.MonHost(), false},
		{"key", creds.Key.Reveal(), false},
	}
}

// dial connects to a cluster. It blocks for the configured timeout at most.
func dial(cfg Config, creds rbd.Credentials) (conn, error) {
	c, err := connect(creds, options(cfg, creds, cfg.timeoutSeconds()))
	if err != nil {
		return nil, err
	}
	fsid, err := c.GetFSID()
	if err != nil {
		c.Shutdown()
		return nil, err
	}
	return &radosConn{conn: c, id: fsid, timeout: cfg.Timeout}, nil
}

func connect(creds rbd.Credentials, options []option) (*rados.Conn, error) {
	// Not NewConnWithUser: librados applies changes of its log options only to a
	// connection whose cluster has a name, and until then writes errors to standard
	// error. The name means nothing else here.
	c, err := rados.NewConnWithClusterAndUser("ceph", "client."+creds.User)
	if err != nil {
		return nil, err
	}
	for _, o := range options {
		err := c.SetConfigOption(o.name, o.value)
		if o.optional && errors.Is(err, rados.ErrNotFound) {
			continue
		}
		if err != nil {
			release(c)
			// Without the value, which may be a key. And with the bare number: translate
			// would take librados's own error for a cluster's answer.
			number, _ := errno(err)
			return nil, fmt.Errorf("set librados option %s: %w", o.name, number)
		}
	}
	if err := c.Connect(); err != nil {
		release(c)
		return nil, err
	}
	return c, nil
}

// release frees a connection that was never made. rados.Conn leaves that to its finalizer:
// each attempt with a wrong key would keep its threads until the next garbage collection.
func release(c *rados.Conn) {
	runtime.SetFinalizer(c, nil)
	C.rados_shutdown(C.rados_t(c.Cluster()))
}

// radosConn is an established connection.
type radosConn struct {
	conn    *rados.Conn
	id      string
	timeout time.Duration
	// greeted says that an OSD has answered.
	greeted atomic.Bool
}

func (c *radosConn) fsid() string { return c.id }

func (c *radosConn) version() (string, error) {
	answer, _, err := c.conn.MonCommand([]byte(`{"prefix": "version", "format": "json"}`))
	if err != nil {
		return "", err
	}
	return parseVersion(answer)
}

func (c *radosConn) shutdown() { c.conn.Shutdown() }

func (c *radosConn) openPool(name string) (ioctx, error) {
	begin := time.Now()
	io, err := c.conn.OpenIOContext(name)
	if err != nil {
		return nil, err
	}
	// Otherwise librados holds back every call to a full pool until there is room, even
	// the removals that would make room. That looks like an OSD that does not answer.
	err = io.SetPoolFullTry()
	if err == nil {
		err = c.greet(io, time.Until(begin.Add(c.timeout)))
	}
	if err != nil {
		io.Destroy()
		return nil, err
	}
	return &radosPool{conn: c.conn, io: io, name: name}, nil
}

// dialManager is dial for commands to a cluster's manager, which block without limit.
func dialManager(cfg Config, creds rbd.Credentials) (managerConn, error) {
	const noLimit = 0 // see managerConn
	c, err := connect(creds, options(cfg, creds, noLimit))
	if err != nil {
		return nil, err
	}
	return &radosManager{c}, nil
}

// radosManager is an established connection.
type radosManager struct{ conn *rados.Conn }

func (m *radosManager) shutdown() { m.conn.Shutdown() }

func (m *radosManager) removeTrashed(pool, id string) error {
	tasks := admin.NewFromConn(m.conn).Task()
	task, err := tasks.AddTrashRemove(admin.NewImageSpec(pool, "", id))
	if err != nil {
		return err
	}
	if task.RetryMessage == "" || task.InProgress {
		return nil
	}
	// An earlier request's task has failed, and the manager would try it again. Should it
	// stay queued, that does no harm. go-ceph takes the empty answer to Cancel for an error.
	_, _ = tasks.Cancel(task.ID)
	return rbd.ErrManagerFailed
}
