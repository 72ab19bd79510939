// SPDX-License-Identifier: Apache-2.0

// Package cluster is the test rig: a real Ceph cluster, a real Kubernetes control plane
// and the provisioner as a process beside them, all in one folder and on free ports of
// 127.0.0.1. If asked to, it adds a node that runs Pods.
//
// A rig leaves nothing behind. However the process ends that started it (a failing test,
// a panic, ctrl-C, kill -9), a small shell that waits for exactly that kills every server
// and removes the folder; see reaper.sh. Several rigs can run at once.
//
// The package starts, stops and disturbs servers. It does not care what is tested on
// them.
package cluster

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Config says what to start. The zero value starts everything.
type Config struct {
	// Dir is the folder to make; it must not exist, but its parent must. Empty
	// is a new one in os.TempDir(). Sockets live in it, and the kernel limits
	// their paths to 107 bytes: keep it short.
	Dir string
	// KubernetesVersion is the version to run, as "1.30.14". Empty is the
	// environment's K8S_VERSION, and DefaultKubernetesVersion without it.
	KubernetesVersion string
	// CephVersion is the release of Ceph to run, as "20". Empty is the environment's
	// CEPH_VERSION, and what is installed without it.
	CephVersion string
	// CephKeys is the type of the cluster's keys, KeysAES or KeysAES256K. Empty is the
	// environment's CEPH_KEYS, and KeysAES without it.
	CephKeys string
	// ControllerQPS limits the requests per second of kube-controller-manager. Zero is
	// 200: its own default of 20 binds about four claims a second, which would hide the
	// provisioner's speed.
	ControllerQPS int
	// SkipCeph and SkipKubernetes leave that half out; the field of Cluster is
	// nil then.
	SkipCeph, SkipKubernetes bool
	// Node adds a machine that runs Pods, and a scheduler. It needs root, both
	// halves, what hack/node/build.sh builds, and that EnterNamespace was called.
	// A process can start one such rig.
	Node bool
	// NodeImages are the paths of container images that the node gets, as docker
	// archives. It has Node.Image anyway, and no registry.
	NodeImages []string
	// Progress receives a line on each step, one at a time; nil is silent.
	Progress func(string)
}

// Cluster is a running rig.
type Cluster struct {
	// Dir is the rig's folder. Files in it are removed with the rig.
	Dir string
	// Address is where all servers listen.
	Address string
	// Ceph is nil when the rig has none.
	Ceph *Ceph
	// Kube is nil when the rig has none.
	Kube *Kubernetes
	// Node is nil when the rig has none.
	Node *Node

	folder *folder
	ports  *ports

	progressMu sync.Mutex // held while report is called
	report     func(string)

	mu           sync.Mutex // guards what follows
	daemons      []*Daemon
	provisioners int // started so far
}

// Start starts a rig and waits until it is ready, which takes under ten seconds on an
// idle machine, and most of a minute with a node. ctx bounds only the start. When Start
// fails, nothing is left behind. The caller must Stop or Detach the Cluster.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if cfg.Dir == "" {
		cfg.Dir = filepath.Join(os.TempDir(), "rbd-rig-"+rand.Text()[:10])
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("start rig: %w", err)
	}
	// Fails before anything is started.
	var programs *programs
	if !cfg.SkipKubernetes {
		if programs, err = findPrograms(cfg.KubernetesVersion); err != nil {
			return nil, fmt.Errorf("start rig: %w", err)
		}
	}
	var release *cephRelease
	if !cfg.SkipCeph {
		if release, err = findCeph(cfg.CephVersion); err != nil {
			return nil, fmt.Errorf("start rig: %w", err)
		}
	}
	address := loopback
	var nodePrograms *nodePrograms
	if cfg.Node {
		if nodePrograms, err = prepareNode(cfg, programs); err != nil {
			return nil, fmt.Errorf("start rig: %w", err)
		}
		address = hostAddress
	}
	f, err := newFolder(dir)
	if err != nil {
		return nil, fmt.Errorf("start rig: %w", err)
	}
	c := &Cluster{Dir: dir, Address: address, folder: f, ports: &ports{address: address}, report: cfg.Progress}
	if err := c.start(ctx, cfg, release, programs, nodePrograms); err != nil {
		return nil, errors.Join(fmt.Errorf("start rig: %w", err), c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context, cfg Config, release *cephRelease, programs *programs, nodePrograms *nodePrograms) error {
	if err := os.Mkdir(filepath.Join(c.Dir, "log"), 0o700); err != nil {
		return err
	}
	if cfg.Node {
		if err := c.makeNetwork(ctx); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var cephErr, kubeErr error
	if !cfg.SkipCeph {
		wg.Go(func() {
			if c.Ceph, cephErr = c.startCeph(ctx, release, cmp.Or(cfg.CephKeys, os.Getenv("CEPH_KEYS"), KeysAES)); cephErr != nil {
				cancel() // do not wait for the other half
			}
		})
	}
	if !cfg.SkipKubernetes {
		wg.Go(func() {
			if c.Kube, kubeErr = c.startKubernetes(ctx, cfg, programs); kubeErr == nil && cfg.Node {
				c.Node, kubeErr = c.startNode(ctx, nodePrograms, cfg.NodeImages)
			}
			if kubeErr != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	return errors.Join(cephErr, kubeErr)
}

// Stop ends everything and removes the folder. It first stops the provisioners that still
// run, with SIGTERM, and reports how they end like Daemon.Stop, because their exit status
// may be a finding. It kills the servers.
func (c *Cluster) Stop() error {
	daemons := c.Daemons()
	var errs []error
	for _, d := range daemons {
		if r := d.current(); d.gentle && r != nil && !r.ended() {
			errs = append(errs, d.Stop())
		}
	}
	errs = append(errs, c.folder.remove())
	for _, d := range daemons {
		if r := d.current(); r != nil {
			<-r.done
		}
	}
	c.ports.close()
	return errors.Join(errs...)
}

// Detach leaves the rig running when this process ends; later, Remove(c.Dir) ends it. The
// Cluster must not be used any more.
func (c *Cluster) Detach() error {
	defer c.ports.close()
	return c.folder.detach()
}

// Daemons lists all servers and provisioners of the rig, in the order in which
// they were started.
func (c *Cluster) Daemons() []*Daemon {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*Daemon(nil), c.daemons...)
}

// DumpLogs writes the last lines of the log of each daemon.
func (c *Cluster) DumpLogs(w io.Writer) {
	for _, d := range c.Daemons() {
		state := "runs"
		if r := d.current(); r == nil {
			state = "was not started"
		} else if r.ended() {
			state = "ended: " + ended(r).Error()
		}
		// If a log can't be shown, that must not hide the failure.
		_, _ = fmt.Fprintf(w, "=== %s (%s)\n%s", d.Name, state, d.tails(40))
	}
}

// Port reserves a TCP port of Address for the life of the rig. No other rig
// gets it, and no outgoing connection.
func (c *Cluster) Port() (int, error) { return c.ports.reserve() }

// endpoint is a port of the rig's address.
func (c *Cluster) endpoint(port int) string { return fmt.Sprintf("%s:%d", c.Address, port) }

// progress tells the caller what has been done.
func (c *Cluster) progress(line string) {
	c.progressMu.Lock()
	defer c.progressMu.Unlock()
	if c.report != nil {
		c.report(line)
	}
}

// startDaemon runs a server and waits until ready answers with nil.
func (c *Cluster) startDaemon(ctx context.Context, name string, ready func(context.Context) error, env []string, path string, args ...string) (*Daemon, error) {
	d := c.newDaemon(name, env, path, args...)
	d.ready = ready
	begin := time.Now()
	if err := d.Start(ctx); err != nil {
		return nil, err
	}
	c.progress(fmt.Sprintf("%s is ready after %.1f s", name, time.Since(begin).Seconds()))
	return d, nil
}

// newDaemon makes a server known to the rig without starting it.
func (c *Cluster) newDaemon(name string, env []string, path string, args ...string) *Daemon {
	d := &Daemon{
		Name:   name,
		Log:    filepath.Join(c.Dir, "log", name+".log"),
		folder: c.folder,
		path:   path, args: args, env: env,
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.daemons = append(c.daemons, d)
	return d
}
