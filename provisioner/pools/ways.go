// SPDX-License-Identifier: Apache-2.0

package pools

import (
	"context"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// way leads to a pool.
type way struct {
	location volume.Location
	route    volume.Route
	// pool is where a volume says that the way leads; empty if none says so.
	pool volume.PoolID
}

// ways returns those that our classes and volumes name. Pools that neither names any
// more are not visited: nothing says who opens them.
func (r *Rounds) ways(ctx context.Context) []way {
	var list []way
	at := map[volume.Route]int{}
	for _, w := range append(r.ofClasses(ctx), r.ofVolumes(ctx)...) {
		if i, found := at[w.route]; !found {
			at[w.route] = len(list)
			list = append(list, w)
		} else if list[i].pool.FSID == "" {
			list[i].pool = w.pool
		}
	}
	return list
}

func (r *Rounds) ofClasses(ctx context.Context) (list []way) {
	classes, err := r.config.Classes.List(labels.Everything())
	if err != nil {
		klog.FromContext(ctx).Error(err, "Classes could not be listed") // a cache has no errors
	}
	for _, class := range classes {
		if class.Provisioner != r.config.Name {
			continue
		}
		// Events on its claims report a faulty class.
		if location, err := storageclass.ParseLocation(class.Parameters); err == nil {
			list = append(list, way{location: location, route: location.Route()})
		}
	}
	return list
}

func (r *Rounds) ofVolumes(ctx context.Context) (list []way) {
	volumes, err := r.config.Volumes.List(labels.Everything())
	if err != nil {
		klog.FromContext(ctx).Error(err, "Volumes could not be listed") // a cache has no errors
	}
	for _, pv := range volumes {
		if pv.Annotations[volume.AnnProvisionedBy] != r.config.Name || !volume.IsOf(pv, r.config.Identity) {
			continue
		}
		record, err := volume.Read(pv)
		if err != nil || !record.Complete() {
			continue // made by another program
		}
		if location, err := record.Location(); err == nil {
			list = append(list, way{location, location.Route(), record.PoolID()})
		}
	}
	return list
}

// end returns the pool to which a way leads; empty if unknown.
func (r *Rounds) end(w way) volume.PoolID {
	r.mu.Lock()
	defer r.mu.Unlock()
	if pool, found := r.leads[w.route]; found {
		return pool
	}
	return w.pool
}
