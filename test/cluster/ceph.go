// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/uuid"
)

// Ceph is a cluster of one monitor, one manager and one OSD that keeps its data
// in memory, with the pool "rbd".
//
// What happens to the data: Stop and Restart of the OSD keep it, because the OSD writes
// it to the rig's folder when SIGTERM ends it. Kill loses everything since its last such
// end, and with it the cluster; to make the OSD unreachable, use Pause. A client that
// waited while the OSD was away notices its return within five seconds
// (objecter_tick_interval). The monitor keeps its data whatever happens to it; the
// manager has none.
type Ceph struct {
	// Conf is the path of ceph.conf, for CEPH_CONF. It names the keyring too, so every
	// program that uses it is client.admin.
	Conf string
	// Keyring is the path of the keyring; it holds client.admin's key and the
	// daemons'.
	Keyring string
	// FSID is the cluster's ID.
	FSID string
	// Version is that of its servers and commands, as "20.2.4".
	Version string
	// Programs is the folder of its commands; empty if they are installed, in PATH.
	Programs string
	// MonitorV1 and MonitorV2 are the monitor's addresses, as "127.0.0.1:6789",
	// for Ceph's old and new message protocol. Kubelets map with the old one.
	MonitorV1, MonitorV2 string

	Mon, Mgr, OSD *Daemon

	cluster *Cluster
	release *cephRelease
	env     []string

	erasure sync.Once // guards the OSDs of the erasure-coded pools
	// erasureErr is written once by erasure.
	erasureErr error
}

// The types of cephx keys. A newly made cluster of Ceph 20.2.4 accepts the later one
// only, which librados before 19.2.6 and Linux before 7.0 can't use.
const (
	KeysAES     = "aes"
	KeysAES256K = "aes256k"
)

// secret makes a cephx key: its type (1 is AES), its creation time, the length of the
// rest, and as many random bytes.
func secret(keys string) string {
	kind, length := uint16(1), 16
	if keys == KeysAES256K {
		kind, length = 2, 32
	}
	key := binary.LittleEndian.AppendUint16(nil, kind)
	key = binary.LittleEndian.AppendUint32(key, uint32(time.Now().Unix()))
	key = binary.LittleEndian.AppendUint32(key, 0)
	key = binary.LittleEndian.AppendUint16(key, uint16(length))
	random := make([]byte, length)
	_, _ = rand.Read(random) // never fails
	return base64.StdEncoding.EncodeToString(append(key, random...))
}

func (c *Cluster) startCeph(ctx context.Context, release *cephRelease, keys string) (*Ceph, error) {
	begin := time.Now()
	dir := filepath.Join(c.Dir, "ceph")
	// Ceph's usual ports. With another port, as in the addresses that kubelet gives to
	// "rbd", a client tries both protocols, and waits five minutes before it reports a
	// wrong key.
	v1, v2 := 6789, 3300
	var err error
	if c.Address == loopback {
		if v1, err = c.Port(); err != nil {
			return nil, err
		}
		if v2, err = c.Port(); err != nil {
			return nil, err
		}
	}
	ceph := &Ceph{
		Conf:      filepath.Join(dir, "ceph.conf"),
		Keyring:   filepath.Join(dir, "keyring"),
		FSID:      string(uuid.NewUUID()),
		MonitorV1: c.endpoint(v1),
		MonitorV2: c.endpoint(v2),
		Version:   release.version,
		Programs:  release.bin,
		cluster:   c,
		release:   release,
	}
	ceph.env = append(release.environment(), "CEPH_CONF="+ceph.Conf)
	if err := errors.Join(
		os.Mkdir(dir, 0o700),
		os.WriteFile(ceph.Conf, []byte(ceph.conf(dir)), 0o600),
		os.WriteFile(ceph.Keyring, []byte(keyring(keys)), 0o600),
	); err != nil {
		return nil, err
	}
	if err := ceph.startMon(ctx, dir, keys); err != nil {
		return nil, err
	}

	// The manager needs three seconds to load its modules. Meanwhile the OSD starts and
	// gets its pool.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var mgrErr error
	wg.Go(func() {
		if mgrErr = ceph.startMgr(ctx); mgrErr != nil {
			cancel()
		}
	})
	osdErr := func() error {
		if ceph.OSD, err = ceph.startOSD(ctx, 0, "root=default", "host=rig"); err != nil {
			return err
		}
		return ceph.CreatePool(ctx, "rbd")
	}()
	if osdErr != nil {
		cancel()
	}
	wg.Wait()
	if err := errors.Join(osdErr, mgrErr); err != nil {
		return nil, fmt.Errorf("start Ceph: %w", err)
	}
	c.progress(fmt.Sprintf("Ceph is ready after %.1f s", time.Since(begin).Seconds()))
	return ceph, nil
}

// keyring holds the keys with which the monitor starts.
func keyring(keys string) string {
	var b bytes.Buffer
	for _, entity := range []struct{ name, caps string }{
		{"mon.", "caps mon = \"allow *\"\n"},
		{"client.admin", "caps mon = \"allow *\"\ncaps mgr = \"allow *\"\ncaps osd = \"allow *\"\ncaps mds = \"allow *\"\n"},
		{"mgr.x", "caps mon = \"allow profile mgr\"\ncaps osd = \"allow *\"\ncaps mds = \"allow *\"\n"},
		{"osd.0", osdCaps}, {"osd.1", osdCaps}, {"osd.2", osdCaps}, {"osd.3", osdCaps},
	} {
		fmt.Fprintf(&b, "[%s]\nkey = %s\n%s", entity.name, secret(keys), entity.caps)
	}
	return b.String()
}

const osdCaps = "caps mon = \"allow profile osd\"\ncaps mgr = \"allow profile osd\"\ncaps osd = \"allow *\"\n"

func (ceph *Ceph) conf(dir string) string {
	classes := ""
	if ceph.release.classes != "" {
		classes = "osd class dir = " + ceph.release.classes + "\n"
	}
	return fmt.Sprintf(`[global]
fsid = %[1]s
mon host = [v2:%[2]s,v1:%[3]s]
public addr = %[6]s
cluster addr = %[6]s
keyring = %[5]s

run dir = %[4]s
admin socket = %[4]s/$name.asok
crash dir = %[4]s/crash
mon data = %[4]s/mon
mgr data = %[4]s/mgr
osd data = %[4]s/osd.$id
osd journal = %[4]s/osd.$id/journal

# One log per daemon: what it writes to standard error.
log to file = false
log to stderr = true
mon cluster log to file = false
mon cluster log file = %[4]s/cluster.log

# Each step of a placement group and of the monitor's database is not news.
debug osd = 0/5
debug mon = 0/5
debug rocksdb = 0/5

# memstore saves its data when it is closed, which a fast shutdown leaves out.
osd objectstore = memstore
%[7]sosd fast shutdown = false
# How much it may hold; memory is used as images are written.
memstore device bytes = 4G

# A single OSD.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush update on start = false
mon allow pool size one = true
mon warn on pool no redundancy = false
# Overwriting in erasure-coded pools asks for bluestore only because of its
# checksums.
mon debug no require bluestore for ec overwrites = true
mon allow pool delete = true

# A nearly full disk must not stop the monitor.
mon data avail crit = 0
mon data avail warn = 1
auth allow insecure global id reclaim = false

# By default the monitor collects changes for a second before it decides, and
# the manager reports every two: most of a start would be waiting.
paxos propose interval = 0.05
paxos min wait = 0.01
mgr tick period = 1
mgr initial modules =

[client]
# Programs that are run by hand print what they have to say; their log would
# stand between.
log to stderr = false
`, ceph.FSID, ceph.MonitorV2, ceph.MonitorV1, dir, ceph.Keyring, ceph.cluster.Address, classes)
}

func (ceph *Ceph) startMon(ctx context.Context, dir, keys string) error {
	monmap := filepath.Join(dir, "monmap")
	args := []string{"--create", "--fsid", ceph.FSID}
	if ceph.release.major() >= 20 && keys == KeysAES {
		// By default, it accepts no such key.
		args = append(args, "--auth-allowed-ciphers", "aes,aes256k", "--auth-preferred-cipher", "aes", "--auth-service-cipher", "aes")
	}
	args = append(args, "--addv", "a", fmt.Sprintf("[v2:%s,v1:%s]", ceph.MonitorV2, ceph.MonitorV1), monmap)
	if _, err := ceph.Run(ctx, "monmaptool", args...); err != nil {
		return err
	}
	if _, err := ceph.Run(ctx, "ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", ceph.Keyring); err != nil {
		return err
	}
	var err error
	ceph.Mon, err = ceph.cluster.startDaemon(ctx, "mon.a", func(ctx context.Context) error {
		_, err := ceph.Run(ctx, "ceph", "--connect-timeout", "5", "quorum_status")
		return err
	}, ceph.env, "ceph-mon", "-f", "-i", "a")
	return err
}

// startMgr starts the manager and waits until it answers commands of the module
// that removes images in the background.
func (ceph *Ceph) startMgr(ctx context.Context) error {
	var gid uint64 // of the process that was ready last
	ready := func(ctx context.Context) error {
		var mgr struct {
			GID       uint64 `json:"active_gid"`
			Available bool   `json:"available"`
		}
		answer, err := ceph.monitor(ctx, "mgr dump", map[string]any{"format": "json"})
		if err == nil {
			err = json.Unmarshal([]byte(answer), &mgr)
		}
		if err != nil {
			return err
		}
		// The monitor needs half a minute to notice that a manager was killed.
		if !mgr.Available || mgr.GID == gid {
			return errors.New("no manager is active")
		}
		if _, err := ceph.Run(ctx, "ceph", "rbd", "task", "list"); err != nil {
			return err
		}
		gid = mgr.GID
		return nil
	}
	var err error
	ceph.Mgr, err = ceph.cluster.startDaemon(ctx, "mgr.x", ready, ceph.env, "ceph-mgr", "-f", "-i", "x")
	return err
}

// startOSD makes and starts one OSD at a place of the CRUSH map.
func (ceph *Ceph) startOSD(ctx context.Context, id int, location ...string) (*Daemon, error) {
	name, number := fmt.Sprintf("osd.%d", id), fmt.Sprint(id)
	osdUUID := string(uuid.NewUUID())
	if err := os.Mkdir(filepath.Join(filepath.Dir(ceph.Conf), name), 0o700); err != nil {
		return nil, err
	}
	if _, err := ceph.Run(ctx, "ceph", "osd", "new", osdUUID, number); err != nil {
		return nil, err
	}
	if _, err := ceph.Run(ctx, "ceph", append([]string{"osd", "crush", "add", name, "1"}, location...)...); err != nil {
		return nil, err
	}
	if _, err := ceph.Run(ctx, "ceph-osd", "--mkfs", "-i", number, "--osd-uuid", osdUUID); err != nil {
		return nil, err
	}
	d := ceph.cluster.newDaemon(name, ceph.env, "ceph-osd", "-f", "-i", number)
	d.ready = func(ctx context.Context) error { return ceph.osdIsActive(ctx, name) }
	if err := d.Start(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// osdIsActive returns nil when an OSD's present process knows from the monitor that it is
// up. The process is asked, at its socket: the monitor's answer may be about a predecessor
// whose end it has not noticed.
func (ceph *Ceph) osdIsActive(ctx context.Context, name string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", filepath.Join(filepath.Dir(ceph.Conf), name+".asok"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // only read
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	// The answer is preceded by its length.
	if _, err := conn.Write([]byte("{\"prefix\": \"status\"}\x00")); err != nil {
		return err
	}
	var length uint32
	if err := binary.Read(conn, binary.BigEndian, &length); err != nil {
		return err
	}
	var status struct{ State string }
	if err := json.NewDecoder(io.LimitReader(conn, int64(length))).Decode(&status); err != nil {
		return err
	}
	if status.State != "active" {
		return fmt.Errorf("%s is in state %q", name, status.State)
	}
	return nil
}

// Run runs one of Ceph's programs (ceph, rbd, rados) as client.admin and
// returns its standard output; its error holds what it wrote to standard error.
func (ceph *Ceph) Run(ctx context.Context, program string, args ...string) (string, error) {
	return ceph.cluster.folder.run(ctx, nil, ceph.env, program, args...)
}

// JSON runs one of Ceph's programs like Run and decodes its output into answer.
func (ceph *Ceph) JSON(ctx context.Context, answer any, program string, args ...string) error {
	out, err := ceph.Run(ctx, program, append(args, "--format", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), answer); err != nil {
		return fmt.Errorf("%s %s: %w", program, args, err)
	}
	return nil
}
