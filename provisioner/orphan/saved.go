// SPDX-License-Identifier: Apache-2.0

package orphan

import (
	"context"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
)

// Saved is a pools.Visitor that clears the intents of images whose volumes this process
// has saved: all of a pool in one call, without looking at anything. It is separate
// from Orphans, whose visits may take long and come again late.
type Saved struct{ Journal *journal.Journal }

// Visit implements pools.Visitor. It returns the errors of Journal.Settle. If a stop
// cuts it off, nothing is lost: the next leader finds the volumes.
func (s Saved) Visit(ctx context.Context, pool *access.Pool) error {
	images := s.Journal.InFlight.SavedIn(pool.ID)
	if len(images) == 0 {
		return nil
	}
	return s.Journal.Settle(ctx, pool, pool.ID, images...)
}
