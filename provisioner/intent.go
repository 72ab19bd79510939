// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	// clearEvery is how long intents whose volume was saved are collected
	// before they are cleared in one call.
	clearEvery = time.Second
	// clearRetry is how long a pool in which that failed is left alone.
	clearRetry = 30 * time.Second
	// clearTimeout bounds clearing in one pool, beside the deadline of a call.
	clearTimeout = time.Minute
)

// makeImage makes the image, or finds it for a claim that is gone, with an intent
// in the journal from before the image is there.
func (p *Provisioner) makeImage(ctx context.Context, pool *access.Pool, location volume.Location, r request, claim *corev1.PersistentVolumeClaim, wanted bool) error {
	owner := p.ownerOf(claim, r.pvName)
	in := journal.Intent{
		Image:     r.image,
		Namespace: claim.Namespace,
		Claim:     claim.Name,
		ClaimUID:  string(claim.UID),
		Volume:    r.pvName,
		SizeBytes: r.sizeBytes,
		DataPool:  r.params.DataPool,
	}
	place := journal.Place{FSID: pool.FSID, Pool: location.Pool}
	unlock := p.images.lock(place, r.image)
	defer unlock()
	if !p.hasJournal() {
		return p.makeNoted(ctx, pool, location, r, owner, in, wanted)
	}
	// In care until the volume is saved. Whatever goes wrong before, the
	// library may ask again or forget the claim: recovery waits for the one, and
	// cleans up after the other.
	p.ledger.Hold(place, location, in)
	err := p.makeNoted(ctx, pool, location, r, owner, in, wanted)
	if err != nil {
		p.ledger.Release(in)
	}
	return err
}

func (p *Provisioner) makeNoted(ctx context.Context, pool *access.Pool, location volume.Location, r request, owner owner, in journal.Intent, wanted bool) error {
	switch {
	case wanted && r.isClone():
		return cloning{Provisioner: p, request: r, pool: pool, location: location, owner: owner, intent: in}.run(ctx)
	case wanted:
		if err := p.note(ctx, pool, in); err != nil {
			return err
		}
		return p.ensureImage(ctx, pool, r, owner)
	}
	if err := p.findImage(ctx, pool, r, owner); err != nil {
		return err
	}
	if r.isClone() && p.hasJournal() {
		earlier, err := p.journal.Of(ctx, pool, r.image)
		if err != nil {
			return err
		}
		r.source.restore(earlier)
		in.SourceID, in.SourceVolume = earlier.SourceID, earlier.SourceVolume
		in.SourceFSType, in.SourceBytes = earlier.SourceFSType, earlier.SourceBytes
	}
	// Who made it has noted it, unless that was a version without a journal.
	return p.note(ctx, pool, in)
}

// note writes an intent down, if there is a journal.
func (p *Provisioner) note(ctx context.Context, pool rbd.Notes, in journal.Intent) error {
	if !p.hasJournal() {
		return nil
	}
	return p.journal.Write(ctx, pool, in)
}

func (p *Provisioner) hasJournal() bool { return p.journal.Object != "" }

// Seen says that the cache shows a volume: the intent for its image may be cleared,
// and volumes that were there before it was released are known. To be called for
// every volume that is added (before is nil), updated, or looked at once more.
func (p *Provisioner) Seen(before, pv *corev1.PersistentVolume) {
	// One that is looked at once more is no news from the API server.
	if before == nil || before.ResourceVersion != pv.ResourceVersion {
		p.noteReleased(pv)
	}
	if !p.hasJournal() || !p.Owns(pv) {
		return
	}
	record, err := volume.Read(pv)
	if err != nil {
		return // not made by this program
	}
	p.ledger.Saved(journal.Place{FSID: record.FSID, Pool: record.Pool}, pv.Name, record.Image)
}

// Keep clears intents whose volume is saved, cleans up after those that something
// cut off, an earlier process or this one where the library gave a claim up,
// removes images of deleted volumes from the trash, and flattens clones. It returns when ctx ends; what
// it has begun then is an operation that Drain waits for, or goes on by itself. Run
// it while leading.
func (p *Provisioner) Keep(ctx context.Context) {
	var loops sync.WaitGroup
	if p.hasJournal() {
		loops.Go(func() { p.clearLoop(ctx) })
	}
	loops.Go(func() { p.recoverLoop(ctx) })
	loops.Go(func() { p.purgeLoop(ctx) })
	loops.Go(func() { p.flattenLoop(ctx) })
	loops.Wait()
}

// clearLoop clears what is saved. An intent that it does not get to is cleared by
// the next leader, who finds the volume.
func (p *Provisioner) clearLoop(ctx context.Context) {
	ticker := time.NewTicker(clearEvery)
	defer ticker.Stop()
	retry := map[journal.Place]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, batch := range p.ledger.Batches() {
			if time.Now().Before(retry[batch.Place]) {
				continue
			}
			delete(retry, batch.Place)
			if err := p.clear(ctx, batch); err != nil {
				klog.FromContext(ctx).V(2).Info("Intents could not be cleared, trying again later",
					"pool", batch.Place.Pool, "count", len(batch.Images), "err", err)
				retry[batch.Place] = time.Now().Add(clearRetry)
			}
		}
	}
}

func (p *Provisioner) clear(ctx context.Context, batch journal.Batch) error {
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	pool, err := p.config.Access.Open(ctx, batch.Location)
	if err != nil {
		return err
	}
	defer pool.Close()
	if pool.FSID != batch.Place.FSID {
		return access.ErrOtherCluster
	}
	if err := p.clearIntents(ctx, pool, batch.Images...); err != nil {
		return access.Explain(err, batch.Location)
	}
	p.ledger.Cleared(batch)
	return nil
}

// clearIntents clears intents for images that are settled. Before one was made,
// the removal of a half-made one of its name may have been cut off: as long as
// there is an intent, somebody will look.
func (p *Provisioner) clearIntents(ctx context.Context, pool rbd.Pool, images ...string) error {
	if err := pool.FinishRemovals(ctx, images...); err != nil {
		return err
	}
	return p.journal.Clear(ctx, pool, images...)
}
