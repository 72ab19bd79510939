// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"ceph.com/rbd-provisioner/provisioner/flatten"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/orphan"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/trash"
	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

// jobs are a leader's background work on images, each on its own queue. They know nothing
// of one another; newJobs connects them.
type jobs struct {
	journal *journal.Journal
	// activity counts the operations to which removing images gives way.
	activity *lease.Activity
	// trash removes images of deleted volumes, flatten flattens clones.
	trash   *trash.Queue
	flatten *flatten.Queue
	// pools visits our pools to find what earlier leaders and attempts left there.
	pools *pools.Rounds
}

func newJobs(c controllerConfig, events record.EventRecorder) (*jobs, error) {
	volumes := index.Volumes{Cache: c.informers.Core().V1().PersistentVolumes().Informer().GetIndexer()}
	j := &jobs{
		journal:  journal.New(c.clusterUID, c.options.provisionerName, c.options.identity),
		activity: new(lease.Activity),
	}
	var err error
	j.trash, err = trash.New(trash.Config{
		Access: c.access, Journal: j.journal, Volumes: volumes, Events: events,
		Quiet: j.activity.Quiet, Purged: newPurgedCounter(c.registry),
	})
	if err != nil {
		return nil, err
	}
	flattened := newFlattenedCounter(c.registry)
	j.flatten, err = flatten.New(flatten.Config{
		Access: c.access, Cluster: c.clusterUID,
		Flattened: func(pool volume.PoolID, parent string) {
			flattened()
			j.trash.Wake(pool, parent)
		},
	})
	if err != nil {
		return nil, err
	}
	left, err := orphan.New(orphan.Config{
		Identity: c.options.identity, Cluster: c.clusterUID, Journal: j.journal, Lease: c.guard,
		Claims: c.client.CoreV1(), Volumes: c.client.CoreV1(), Index: volumes,
		Trash: j.trash.Move, Settled: newRecoveredCounter(c.registry),
	})
	if err != nil {
		return nil, err
	}
	j.pools, err = pools.New(pools.Config{
		Name: c.options.provisionerName, Identity: c.options.identity, Access: c.access,
		Classes:  c.informers.Storage().V1().StorageClasses().Lister(),
		Volumes:  c.informers.Core().V1().PersistentVolumes().Lister(),
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

// adviceDelay is how long a claim waits before it is told that it waits in vain: who
// restores a backup may make the volume after the claim.
const adviceDelay = 30 * time.Second

// advise has claims told why they wait in vain, until ctx ends. Each leader tells each claim
// once.
func (c *controller) advise(ctx context.Context) {
	claims := c.informers.Core().V1().PersistentVolumeClaims()
	queue := work.NewQueue[cache.ObjectName]()
	// It fails only when the informer has ended, and this process with it.
	_, _ = claims.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(obj any) {
		claim := obj.(*corev1.PersistentVolumeClaim)
		if claim.Status.Phase != corev1.ClaimBound && (claim.Spec.VolumeName != "" || !c.provisioner.ShouldProvision(ctx, claim)) {
			queue.AddAfter(cache.MetaObjectToName(claim), adviceDelay)
		}
	}})
	queue.Run(ctx, 1, func(ctx context.Context, name cache.ObjectName) error {
		if claim, err := claims.Lister().PersistentVolumeClaims(name.Namespace).Get(name.Name); err == nil {
			c.provisioner.Advise(ctx, claim)
		}
		return nil
	})
}
