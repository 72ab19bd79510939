// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd/admin"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// dialManager connects to a cluster for commands to its manager. It blocks for the
// configured timeout at most; the commands then block without limit.
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
	// The task is that of an earlier request, and has failed. If it stays queued, the
	// manager tries again, and finds the image gone or fails again. go-ceph takes the
	// empty answer to Cancel for an error.
	_, _ = tasks.Cancel(task.ID)
	return rbd.ErrManagerFailed
}
