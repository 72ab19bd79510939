// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	rigs "ceph.com/rbd-provisioner/test/cluster"
)

// ceph is a real cluster, with a client that has all rights.
type ceph struct {
	rig   *rigs.Ceph
	admin rbd.Credentials
	conn  *rados.Conn
}

// startRig starts a cluster of a release and with keys of a type, as in rigs.Config, that
// runs until the test ends.
func startRig(t testing.TB, release, keys string) *rigs.Ceph {
	t.Helper()
	rig, err := rigs.Start(t.Context(), rigs.Config{
		CephVersion: release, CephKeys: keys, SkipKubernetes: true, Progress: func(s string) { t.Log(s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			rig.DumpLogs(t.Output())
		}
		if err := rig.Stop(); err != nil {
			t.Error(err)
		}
	})
	return rig.Ceph
}

// startCeph starts the cluster that the environment asks for, until the test ends.
func startCeph(t testing.TB) *ceph {
	t.Helper()
	rig := startRig(t, "", "")
	key, err := rig.Key(t.Context(), "admin")
	if err != nil {
		t.Fatal(err)
	}
	c := &ceph{rig: rig}
	c.admin = c.credentials(t, "admin", key)
	c.conn = c.dial(t)
	// How often OSDs report what pools hold, and how often the monitor looks at that: the
	// default is five seconds each, and setFull waits for both.
	c.command(t, "config set", map[string]any{"who": "mgr", "name": "mgr_stats_period", "value": "1"})
	c.command(t, "config set", map[string]any{"who": "mon", "name": "mon_tick_interval", "value": "1"})
	return c
}

// credentials name the protocol that kubelets use. librados takes an address without a
// protocol and with an uncommon port, like the rig's, for two addresses, one of which never
// answers.
func (c *ceph) credentials(t testing.TB, user, key string) rbd.Credentials {
	t.Helper()
	parsed, err := rbd.ParseKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return rbd.Credentials{Monitors: []string{"v1:" + c.rig.MonitorV1}, User: user, Key: parsed}
}

// silent reports whether OSDs do not answer a user without caps for them.
func (c *ceph) silent() bool {
	major, _, _ := strings.Cut(c.rig.Version, ".")
	return major != "16"
}

// dial returns a new client that the test's cleanup closes.
func (c *ceph) dial(t testing.TB) *rados.Conn {
	t.Helper()
	made, err := dial(Config{Timeout: time.Minute}, c.admin)
	if err != nil {
		t.Fatal(err)
	}
	conn := made.(*radosConn).conn
	t.Cleanup(conn.Shutdown)
	return conn
}

func (c *ceph) ioctx(t testing.TB, conn *rados.Conn, pool string) *rados.IOContext {
	t.Helper()
	io, err := conn.OpenIOContext(pool)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(io.Destroy)
	return io
}

// command sends a command to the monitor, as the program ceph does.
func (c *ceph) command(t testing.TB, prefix string, args map[string]any) string {
	t.Helper()
	command := map[string]any{"prefix": prefix}
	for name, value := range args {
		command[name] = value
	}
	text, err := json.Marshal(command)
	if err != nil {
		t.Fatal(err)
	}
	out, status, err := c.conn.MonCommand(text)
	if err != nil {
		t.Fatalf("ceph %s: %v: %s", prefix, err, status)
	}
	return string(out)
}

// addUser makes a user, or gives an existing one a new key.
func (c *ceph) addUser(t *testing.T, user string, caps ...string) rbd.Credentials {
	t.Helper()
	c.command(t, "auth del", map[string]any{"entity": "client." + user})
	c.command(t, "auth get-or-create", map[string]any{"entity": "client." + user, "caps": caps})
	key := c.command(t, "auth get-key", map[string]any{"entity": "client." + user})
	return c.credentials(t, user, strings.TrimSpace(key))
}

func (c *ceph) addPool(t testing.TB, pool string) {
	t.Helper()
	c.command(t, "osd pool create", map[string]any{"pool": pool, "pg_num": 4, "pgp_num": 4})
	c.command(t, "osd pool application enable", map[string]any{"pool": pool, "app": "rbd"})
}

func (c *ceph) removePool(t *testing.T, pool string) {
	t.Helper()
	c.command(t, "osd pool delete", map[string]any{"pool": pool, "pool2": pool, "yes_i_really_really_mean_it": true})
}

// setFull sets a quota that the pool exceeds, or removes it. The manager must count the
// objects, and the OSD must hear the result: it takes seconds until a write shows it.
func (c *ceph) setFull(t *testing.T, pool string, full bool) {
	t.Helper()
	quota := "0"
	if full {
		quota = "1"
	}
	c.command(t, "osd pool set-quota", map[string]any{"pool": pool, "field": "max_objects", "val": quota})
	io := c.ioctx(t, c.conn, pool)
	if err := io.SetPoolFullTry(); err != nil {
		t.Fatal(err)
	}
	err := rigs.Eventually(t.Context(), time.Minute, func(context.Context) error {
		err := io.WriteFull("probe", []byte("probe"))
		number, _ := errno(err)
		switch {
		case err == nil && full:
			return errors.Join(io.Delete("probe"), errors.New("there is room"))
		case full && number == syscall.EDQUOT:
			return nil
		case err == nil:
			return io.Delete("probe")
		}
		return err
	})
	if err != nil {
		t.Fatalf("wait until pool %s is full: %t: %v", pool, full, err)
	}
}

func (c *ceph) watch(t *testing.T, pool, image string) (address string, stop func()) {
	t.Helper()
	conn := c.dial(t)
	handle, err := librbd.OpenImage(c.ioctx(t, conn, pool), image, librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		if err := handle.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	if address, err = conn.GetAddrs(); err != nil {
		t.Fatal(err)
	}
	return address, stop
}

// write writes to the beginning of an image.
func (c *ceph) write(t *testing.T, pool, image string) {
	t.Helper()
	handle, err := librbd.OpenImage(c.ioctx(t, c.conn, pool), image, librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	_, err = handle.WriteAt([]byte("file system"), 0)
	if err := errors.Join(err, handle.Close()); err != nil {
		t.Fatal(err)
	}
}

func (c *ceph) snapshot(t *testing.T, pool, image, snapshot string) (remove func()) {
	t.Helper()
	io := c.ioctx(t, c.conn, pool)
	with := func(do func(*librbd.Image) error) {
		t.Helper()
		handle, err := librbd.OpenImage(io, image, librbd.NoSnapshot)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(do(handle), handle.Close()); err != nil {
			t.Fatal(err)
		}
	}
	with(func(i *librbd.Image) error {
		_, err := i.CreateSnapshot(snapshot)
		return err
	})
	return func() { with(func(i *librbd.Image) error { return i.GetSnapshot(snapshot).Remove() }) }
}

// trash reads the pool's trash without librbd, whose list omits what an interrupted removal
// left there. Source: TrashImageSpec in Ceph's src/cls/rbd/cls_rbd_types.h.
func (c *ceph) trash(t *testing.T, pool string) []string {
	t.Helper()
	entries, err := c.ioctx(t, c.conn, pool).GetAllOmapValues("rbd_trash", "", "id_", 100)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		// Two bytes of versions, four of length, one for the source.
		name := entry[7:]
		length := binary.LittleEndian.Uint32(name)
		names = append(names, string(name[4:4+length]))
	}
	return names
}

// addRemains writes what librbd writes when it creates or removes an image: the object
// rbd_id.NAME with the ID, and two keys of the object rbd_directory. Source:
// CreateRequest.cc and RemoveRequest.cc in Ceph's src/librbd/image.
func (c *ceph) addRemains(t *testing.T, pool, image string, remains rbdtest.Remains) {
	t.Helper()
	io := c.ioctx(t, c.conn, pool)
	if remains == rbdtest.RemainsUnlisted {
		c.addUnlisted(t, io, image)
		return
	}
	id := fmt.Sprintf("%x", image)
	text := func(s string) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, uint32(len(s))), s...)
	}
	if remains == rbdtest.RemainsID || remains == rbdtest.RemainsDirectory {
		if err := io.WriteFull("rbd_id."+image, text(id)); err != nil {
			t.Fatal(err)
		}
	}
	if remains == rbdtest.RemainsDirectory || remains == rbdtest.RemainsDirectoryOnly {
		keys := map[string][]byte{"name_" + image: text(id), "id_" + id: text(image)}
		if err := io.SetOmap("rbd_directory", keys); err != nil {
			t.Fatal(err)
		}
	}
}

// addUnlisted makes an image and removes its entry from the directory.
func (c *ceph) addUnlisted(t *testing.T, io *rados.IOContext, image string) {
	t.Helper()
	pool := &radosPool{conn: c.conn, io: io}
	if err := pool.CreateImage(t.Context(), image, rbd.ImageSpec{SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	handle, err := librbd.OpenImageReadOnly(io, image, librbd.NoSnapshot)
	if err != nil {
		t.Fatal(err)
	}
	id, err := handle.GetId()
	if err := errors.Join(err, handle.Close()); err != nil {
		t.Fatal(err)
	}
	if err := io.RmOmapKeys("rbd_directory", []string{"name_" + image, "id_" + id}); err != nil {
		t.Fatal(err)
	}
}

// pause stops the OSD of all pools but the erasure-coded ones.
func (c *ceph) pause(t *testing.T) (resume func()) {
	t.Helper()
	if err := c.rig.OSD.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := c.rig.OSD.Resume(); err != nil {
			t.Error(err)
		}
	})
}

// disconnect blocklists the connections of a Connector, as an administrator would do with a
// client that hangs.
func (c *ceph) disconnect(t *testing.T, connector rbd.Connector) {
	t.Helper()
	co := connector.(*Connector)
	co.mu.Lock()
	defer co.mu.Unlock()
	for l := range co.links {
		conn := l.conn.(*radosConn).conn
		address, err := conn.GetAddrs()
		if err != nil {
			t.Fatal(err)
		}
		c.command(t, "osd blocklist", map[string]any{"blocklistop": "add", "addr": address})
		// OSDs would still answer a client that has not heard of it.
		if err := conn.WaitForLatestOSDMap(); err != nil {
			t.Fatal(err)
		}
	}
}

// newTestConnector returns a Connector that the test's cleanup closes.
func newTestConnector(t testing.TB, cfg Config) *Connector {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}
