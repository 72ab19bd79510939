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
	// MonitorV1 and MonitorV2 are the monitor's addresses, as "127.0.0.1:6789",
	// for Ceph's old and new message protocol. Kubelets map with the old one.
	MonitorV1, MonitorV2 string

	Mon, Mgr, OSD *Daemon

	cluster *Cluster
	env     []string

	erasure sync.Once // guards the OSDs of the erasure-coded pools
	// erasureErr is written once by erasure.
	erasureErr error
}

// secret makes a cephx key: its type (1, AES), its creation time, the length of the rest,
// and 16 random bytes.
func secret() string {
	key := binary.LittleEndian.AppendUint16(nil, 1)
	key = binary.LittleEndian.AppendUint32(key, uint32(time.Now().Unix()))
	key = binary.LittleEndian.AppendUint32(key, 0)
	key = binary.LittleEndian.AppendUint16(key, 16)
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails
	return base64.StdEncoding.EncodeToString(append(key, random...))
}

func (c *Cluster) startCeph(ctx context.Context) (*Ceph, error) {
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
		cluster:   c,
	}
	ceph.env = []string{"CEPH_CONF=" + ceph.Conf}
	if err := errors.Join(
		os.Mkdir(dir, 0o700),
		os.WriteFile(ceph.Conf, []byte(ceph.conf(dir)), 0o600),
		os.WriteFile(ceph.Keyring, []byte(keyring()), 0o600),
	); err != nil {
		return nil, err
	}
	if err := ceph.startMon(ctx, dir); err != nil {
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
func keyring() string {
	var b bytes.Buffer
	for _, entity := range []struct{ name, caps string }{
		{"mon.", "caps mon = \"allow *\"\n"},
		{"client.admin", "caps mon = \"allow *\"\ncaps mgr = \"allow *\"\ncaps osd = \"allow *\"\ncaps mds = \"allow *\"\n"},
		{"mgr.x", "caps mon = \"allow profile mgr\"\ncaps osd = \"allow *\"\ncaps mds = \"allow *\"\n"},
		{"osd.0", osdCaps}, {"osd.1", osdCaps}, {"osd.2", osdCaps}, {"osd.3", osdCaps},
	} {
		fmt.Fprintf(&b, "[%s]\nkey = %s\n%s", entity.name, secret(), entity.caps)
	}
	return b.String()
}

const osdCaps = "caps mon = \"allow profile osd\"\ncaps mgr = \"allow profile osd\"\ncaps osd = \"allow *\"\n"

func (ceph *Ceph) conf(dir string) string {
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
osd fast shutdown = false
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
`, ceph.FSID, ceph.MonitorV2, ceph.MonitorV1, dir, ceph.Keyring, ceph.cluster.Address)
}

func (ceph *Ceph) startMon(ctx context.Context, dir string) error {
	monmap := filepath.Join(dir, "monmap")
	if _, err := ceph.Run(ctx, "monmaptool", "--create", "--fsid", ceph.FSID, "--addv", "a",
		fmt.Sprintf("[v2:%s,v1:%s]", ceph.MonitorV2, ceph.MonitorV1), monmap); err != nil {
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
	d.ready = func(ctx context.Context) error { return ceph.osdIsUp(ctx, id, d.PID()) }
	if err := d.Start(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// osdIsUp returns nil when the monitor knows that the OSD's present process is up. An
// OSD's addresses have its process ID, which tells the process from a predecessor whose
// end the monitor has not noticed.
func (ceph *Ceph) osdIsUp(ctx context.Context, id, pid int) error {
	var dump struct {
		OSDs []struct {
			OSD         int `json:"osd"`
			Up          int `json:"up"`
			PublicAddrs struct {
				Addrvec []struct {
					Nonce int `json:"nonce"`
				} `json:"addrvec"`
			} `json:"public_addrs"`
		} `json:"osds"`
	}
	answer, err := ceph.monitor(ctx, "osd dump", map[string]any{"format": "json"})
	if err == nil {
		err = json.Unmarshal([]byte(answer), &dump)
	}
	if err != nil {
		return err
	}
	for _, osd := range dump.OSDs {
		if osd.OSD == id && osd.Up == 1 && len(osd.PublicAddrs.Addrvec) > 0 && osd.PublicAddrs.Addrvec[0].Nonce == pid {
			return nil
		}
	}
	return fmt.Errorf("osd.%d is not up", id)
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
