// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"k8s.io/client-go/tools/record"

	"ceph.com/rbd-provisioner/provisioner/flatten"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/orphan"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/trash"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// jobs are a leader's background work, beside claims and volumes, each on its own
// queue. They know nothing of one another; newJobs connects them.
// the others do is said here.
type jobs struct {
	journal *journal.Journal
	// trash removes images of deleted volumes, flatten flattens clones.
	trash   *trash.Queue
	flatten *flatten.Queue
	// pools visits our pools to find what earlier leaders and attempts left there.
	pools *pools.Rounds
}

// newJobs makes the jobs. Removing images gives way to the operations that activity
// counts.
func newJobs(c controllerConfig, activity *lease.Activity, events record.EventRecorder) (*jobs, error) {
	volumes := index.Volumes{Cache: c.informers.Core().V1().PersistentVolumes().Informer().GetIndexer()}
	j := &jobs{journal: journal.New(c.clusterUID, c.options.provisionerName, c.options.identity)}
	var err error
	j.trash, err = trash.New(trash.Config{
		Access:  c.access,
		Journal: j.journal,
		Volumes: volumes,
		Events:  events,
		Quiet:   activity.Quiet,
		Purged:  newPurgedCounter(c.registry),
	})
	if err != nil {
		return nil, err
	}
	flattened := newFlattenedCounter(c.registry)
	j.flatten, err = flatten.New(flatten.Config{
		Access:  c.access,
		Cluster: c.clusterUID,
		Flattened: func(pool volume.PoolID, parent string) {
			flattened()
			j.trash.Wake(pool, parent)
		},
	})
	if err != nil {
		return nil, err
	}
	left, err := orphan.New(orphan.Config{
		Identity: c.options.identity,
		Cluster:  c.clusterUID,
		Journal:  j.journal,
		Claims:   c.client.CoreV1(),
		Volumes:  c.client.CoreV1(),
		Index:    volumes,
		Lease:    c.guard,
		Settled:  newRecoveredCounter(c.registry),
	})
	if err != nil {
		return nil, err
	}
	j.pools, err = pools.New(pools.Config{
		Name:     c.options.provisionerName,
		Identity: c.options.identity,
		Classes:  c.informers.Storage().V1().StorageClasses().Lister(),
		Volumes:  c.informers.Core().V1().PersistentVolumes().Lister(),
		Access:   c.access,
		Visitors: []pools.Visitor{j.trash, orphan.Saved{Journal: j.journal}, left},
	})
	if err != nil {
		return nil, err
	}
	j.journal.InFlight.OnEnd(j.pools.Again)
	registerTrash(c.registry, j.trash.Counts)
	registerClones(c.registry, j.flatten.Count)
	return j, nil
}

// loops returns the functions to run while this replica leads. Each runs until its
// context ends.
func (j *jobs) loops() []func(context.Context) {
	return []func(context.Context){j.trash.Run, j.flatten.Run, j.pools.Run}
}
