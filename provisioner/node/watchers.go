// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

const (
	// ownWatchTimeout is how long Ceph may take to show the watch of a device of ours. The
	// kernel has it when a new device appears, and renews one that was lost within a second or two.
	ownWatchTimeout = 5 * time.Second
	ownWatchPoll    = 250 * time.Millisecond
)

// errNoWatch says that Ceph does not know of a device's watch, so that nobody else would see
// that this node has the image.
var errNoWatch = errors.New("the device has no watch")

// checkUnused asks Ceph whether a client has the image open, or mapped to be written to:
// the kernel would not mind a second writer, and the file system would not survive one. A
// volume that is only read asks nobody, as kubelet's own plugin does not: its device has no
// watch, either, so it keeps nobody from writing.
func (s *Server) checkUnused(ctx context.Context, o *operation, v volumeRequest, monitors []string) error {
	if v.shared() || v.readOnly() {
		return nil
	}
	o.at("Ceph's answer who uses the image")
	watchers, err := s.watchers(ctx, v, monitors)
	if err != nil || len(watchers) == 0 {
		return err
	}
	return s.inUse(v, watchers)
}

// checkAlone makes sure that a device's own watch is the image's only one. Between a first
// look and the mapping, another node may have done the same; then each sees the other here,
// and both let go. The error is errNoWatch if there is no watch at all.
func (s *Server) checkAlone(ctx context.Context, o *operation, v volumeRequest, monitors []string, d krbd.Device) error {
	if v.shared() || v.readOnly() {
		return nil
	}
	o.at("Ceph's answer who uses the image")
	waitErr := wait.PollUntilContextTimeout(ctx, ownWatchPoll, ownWatchTimeout, true, func(context.Context) (bool, error) {
		// Not with the end of this wait: cut off by it, a question would be unanswered.
		watchers, err := s.watchers(ctx, v, monitors)
		if err != nil {
			return false, err
		}
		own := func(w string) bool { return sameClient(w, d.ClientAddr) }
		if !slices.ContainsFunc(watchers, func(w string) bool { return !own(w) }) {
			return len(watchers) > 0, nil
		}
		return false, s.inUse(v, watchers)
	})
	switch {
	case waitErr == nil || !wait.Interrupted(waitErr):
		return waitErr
	case ctx.Err() != nil: // not a verdict
		return v.explain("ask who uses image "+v.name(), ctx.Err())
	}
	return errNoWatch
}

// noWatch makes errNoWatch of a new device an error for people.
func (s *Server) noWatch(v volumeRequest, d krbd.Device) error {
	return refused(`image %s was mapped on node %s as %s, and Ceph does not list its watch (client %s), without which others could write to it: `+
		`will retry; see "rbd status %s", and lines of libceph in the node's kernel log`, v.name(), s.cfg.NodeID, d.Path(), d.ClientAddr, v.name())
}

// watchers returns the addresses of the clients that have an image open, or mapped to be
// written to.
func (s *Server) watchers(ctx context.Context, v volumeRequest, monitors []string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.CephTimeout)
	defer cancel()
	cluster, err := s.cfg.Ceph.Connect(ctx, rbd.Credentials{Monitors: monitors, User: v.user, Key: v.key})
	if err != nil {
		return nil, v.explain("ask who uses image "+v.name(), err)
	}
	defer cluster.Close()
	if fsid := cluster.FSID(); fsid != v.fsid {
		return nil, v.otherCluster(fsid)
	}
	pool, err := cluster.OpenPool(ctx, v.pool)
	if err != nil {
		return nil, v.explain("ask who uses image "+v.name(), err)
	}
	defer pool.Close()
	image, err := pool.Image(ctx, v.image)
	if err != nil {
		return nil, v.explain("ask who uses image "+v.name(), err)
	}
	return image.Watchers, nil
}

// inUse is the error of an image that has watchers. It gives no command that would cut this
// very node off: all its devices of one cluster and user have the same address.
func (s *Server) inUse(v volumeRequest, watchers []string) error {
	devices, err := s.allDevices()
	if err != nil {
		return err
	}
	var others, commands []string
	for _, w := range watchers {
		if !slices.ContainsFunc(devices, func(d krbd.Device) bool { return sameClient(w, d.ClientAddr) }) {
			others = append(others, w)
			commands = append(commands, "ceph osd blocklist add "+w)
		}
	}
	if len(others) == 0 {
		return refused("image %s is still watched by this node (%s) itself, at %s, from an earlier mapping: will retry; such a watch ends within 30 s, and nothing needs to be done",
			v.name(), s.cfg.NodeID, strings.Join(watchers, ", "))
	}
	return refused("image %s is in use by the client at %s, so this node (%s) must not write to it: will retry; if it goes away within a minute, nothing needs to be done; "+
		"if it stays and that machine is dead for good, shut it out, from all its images: %s",
		v.name(), strings.Join(others, ", "), s.cfg.NodeID, strings.Join(commands, "; "))
}

// otherCluster is the error of a volume whose monitors are not those of the cluster that
// its handle names.
func (v volumeRequest) otherCluster(fsid string) error {
	return invalid("volume %q: its monitors are those of the Ceph cluster %q, and its handle names %q: mend the volume's attributes, or its handle", v.handle, fsid, v.fsid)
}

// sameClient reports whether two addresses, "IP:port/nonce", are those of one client. Ports
// do not count: a client listens on none. Sources: rbd_client_addr_show of Linux's rbd.c, and
// entity_addr_t::get_legacy_str of Ceph, which names no protocol.
func sameClient(a, b string) bool {
	return a != "" && (a == b || clientOf(a) == clientOf(b))
}

func clientOf(address string) string {
	for _, protocol := range []string{"v1:", "v2:", "any:"} {
		address = strings.TrimPrefix(address, protocol)
	}
	host, nonce, _ := strings.Cut(address, "/")
	parsed, err := netip.ParseAddrPort(host)
	if err != nil {
		return address
	}
	return fmt.Sprintf("%s/%s", parsed.Addr().Unmap(), nonce)
}
