// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// unknownVersion is that of a cluster that has not told it.
const unknownVersion = "unknown"

// Versions returns the versions of Ceph, as "16.2.15", of the clusters that were connected
// to, by FSID: what a monitor told the newest connection that got an answer, or "unknown".
func (c *Connector) Versions() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.versions)
}

// learnVersion asks a new connection's monitor for its version, and logs what it was not
// known to be. Nobody waits for the answer. The caller holds Connector.mu.
func (c *Connector) learnVersion(l *link) {
	l.calls++
	go func() {
		version, err := l.conn.version()
		c.mu.Lock()
		defer c.mu.Unlock()
		// A user who may not ask may still work with images: the error says nothing about
		// the link.
		defer c.end(l, nil)
		fsid := l.conn.fsid()
		known, found := c.versions[fsid]
		if err != nil {
			c.log.V(2).Info("The version of Ceph is not told", "fsid", fsid, "user", l.creds.User, "err", translate(err, err))
			if found {
				return
			}
			version = unknownVersion
		}
		if version == known {
			return
		}
		c.versions[fsid] = version
		c.log.Info("Connected to Ceph", "fsid", fsid, "version", version, "monitors", l.creds.MonHost(), "librados", Version())
	}()
}

// Version implements rbd.Cluster.
func (cl *cluster) Version(ctx context.Context) (string, error) {
	version, err := cl.version(ctx)
	if err != nil {
		return "", fmt.Errorf("ask for the version of Ceph: %w", err)
	}
	return version, nil
}

func (cl *cluster) version(ctx context.Context) (string, error) {
	if ctx.Err() != nil {
		return "", &interrupted{rbd.ErrTimeout, context.Cause(ctx)}
	}
	c, l := cl.connector, cl.link
	c.mu.Lock()
	if cl.closed || c.closing {
		c.mu.Unlock()
		return "", errClosed
	}
	l.calls++
	c.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout+grace)
	defer cancel()
	var version string
	err := run(ctx, func() (err error) {
		version, err = l.conn.version()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.end(l, nil) // as in learnVersion
		return translate(err, err)
	})
	if err != nil {
		return "", err // version may still be written
	}
	return version, nil
}

// parseVersion reads a monitor's answer to the command "version", in which text like
// "ceph version 16.2.15 (HASH) pacific (stable)" says it.
func parseVersion(answer []byte) (string, error) {
	var said struct {
		Version string `json:"version"`
	}
	if err := json.Unmarshal(answer, &said); err != nil {
		return "", err
	}
	words := strings.Fields(said.Version)
	if len(words) < 3 {
		return "", errors.New("the answer has no version")
	}
	return words[2], nil
}
