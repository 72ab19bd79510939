// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"time"

	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

const (
	// recoverAgain is when recovery looks again after a round that left
	// something; the time doubles from round to round up to recoverEvery, which
	// is also that after a round that left nothing, unless an operation fails.
	recoverAgain = 5 * time.Second
	recoverEvery = 5 * time.Minute
	// poolTimeout is after which time recovery begins nothing more in a pool
	// in one round, so that others get their turn.
	poolTimeout = 2 * time.Minute
	// absentFor is how long an image must not be there before its intent is
	// cleared: a call of a client that died, or of a process that was stopped
	// and goes on, may still reach an OSD.
	absentFor = time.Minute
)

// Outcome says what recovery did about an intent.
type Outcome string

// The outcomes that are counted.
const (
	// OutcomeRemoved: the image was removed.
	OutcomeRemoved Outcome = "removed"
	// OutcomeForeign: the image is somebody else's, or has data. It was left,
	// and is forgotten.
	OutcomeForeign Outcome = "foreign"
	// OutcomeKept: the image is in use, or could not be removed. Recovery tries
	// again.
	OutcomeKept Outcome = "kept"
)

// Those that are not counted: nothing was found to clean up.
const (
	// outcomeSaved: there is a volume, the intent was cleared.
	outcomeSaved Outcome = "saved"
	// outcomeAbsent: there was no image, the intent was cleared.
	outcomeAbsent Outcome = "absent"
	// outcomeHeld: an operation of this process has the image.
	outcomeHeld Outcome = "held"
	// outcomeWaiting: the claim waits for its image, or it is not yet certain
	// that there is none.
	outcomeWaiting Outcome = "waiting"
)

// left reports whether recovery has to come back.
func (o Outcome) left() bool { return o == OutcomeKept || o == outcomeWaiting }

// recovery is what recoverLoop remembers from round to round.
type recovery struct {
	*Provisioner
	// settled are the places where nothing was left to do, with the ledger's
	// count of releases then: when that grows, there may be something again.
	settled map[journal.Place]int
	// leads says to which place a location led.
	leads map[string]journal.Place
	// absent says since when an image is known not to be there.
	absent map[imageKey]time.Time
	// loaded are the places whose removals were taken up.
	loaded map[journal.Place]bool
	// said are the locations whose fault is in the log.
	said map[string]bool
}

func (p *Provisioner) newRecovery() *recovery {
	return &recovery{
		Provisioner: p,
		settled:     map[journal.Place]int{},
		leads:       map[string]journal.Place{},
		absent:      map[imageKey]time.Time{},
		loaded:      map[journal.Place]bool{},
		said:        map[string]bool{},
	}
}

func (p *Provisioner) recoverLoop(ctx context.Context) {
	r := p.newRecovery()
	again := recoverAgain
	for {
		if r.round(ctx) {
			again = recoverAgain
			r.rest(ctx)
		} else {
			sleep(ctx, again)
			again = min(2*again, recoverEvery)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// rest waits after a round that left nothing: until an operation has failed, which
// may have left something for which the library does not come back.
func (r *recovery) rest(ctx context.Context) {
	for end := time.Now().Add(recoverEvery); time.Now().Before(end) && ctx.Err() == nil; {
		sleep(ctx, recoverAgain)
		for place := range r.settled {
			if !r.isSettled(place) {
				return
			}
		}
	}
}

// sleep waits, or until ctx ends.
func sleep(ctx context.Context, length time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(length):
	}
}

// round looks at every place where something may be left, and reports whether
// nothing is.
func (r *recovery) round(ctx context.Context) bool {
	done := true
	visited := map[journal.Place]bool{}
	for _, w := range r.whereabouts(ctx) {
		if ctx.Err() != nil {
			return false
		}
		place, known := w.place, w.place.FSID != ""
		if !known {
			place, known = r.leads[w.key]
		}
		if known && (visited[place] || r.isSettled(place)) {
			continue
		}
		place, settled, err := r.visit(ctx, w, visited)
		if err != nil {
			if !r.said[w.key] && ctx.Err() == nil {
				klog.FromContext(ctx).Info("What earlier processes left in a pool could not be looked at or removed, trying on",
					"pool", w.location.Pool, "user", w.location.User, "err", err)
				r.said[w.key] = true
			}
			done = false
			continue
		}
		delete(r.said, w.key)
		visited[place] = true
		done = done && settled
	}
	return done
}

func (r *recovery) isSettled(place journal.Place) bool {
	releases, settled := r.settled[place]
	return settled && releases == r.ledger.Releases(place)
}

// visit reads a place's intents and cleans up after those that nobody takes care
// of. An error says that another location may do better.
func (r *recovery) visit(ctx context.Context, w whereabout, visited map[journal.Place]bool) (place journal.Place, settled bool, err error) {
	pool, err := r.config.Access.Open(ctx, w.location)
	if err != nil {
		return place, false, err
	}
	defer pool.Close()
	place = journal.Place{FSID: pool.FSID, Pool: w.location.Pool}
	r.leads[w.key] = place
	if visited[place] || r.isSettled(place) {
		return place, true, nil
	}
	if err := r.loadRemovals(ctx, pool, place, w); err != nil {
		return place, false, access.Explain(err, w.location)
	}
	releases := r.ledger.Releases(place)
	if !r.hasJournal() {
		r.settled[place] = releases
		return place, true, nil
	}
	intents, unreadable, err := r.journal.Read(ctx, pool)
	if err != nil {
		return place, false, access.Explain(err, w.location)
	}
	settled = len(unreadable) == 0
	if !settled && !r.said[w.key] {
		klog.FromContext(ctx).Info("Intents of another version are left alone", "pool", place.Pool,
			"object", r.journal.Object, "images", unreadable)
	}
	begin := time.Now()
	for _, in := range intents {
		if time.Since(begin) > poolTimeout || ctx.Err() != nil {
			return place, false, nil
		}
		outcome, recoverErr := r.recover(ctx, pool, place, in)
		if errors.Is(recoverErr, rbd.ErrPermissionDenied) {
			err = errors.Join(err, access.Explain(recoverErr, w.location))
		}
		settled = settled && !outcome.left()
	}
	if settled {
		r.settled[place] = releases
	}
	return place, settled, err
}

// recover cleans up after one intent. Its error, which is logged, says why an
// image was kept.
func (r *recovery) recover(ctx context.Context, pool *access.Pool, place journal.Place, in journal.Intent) (Outcome, error) {
	logger := klog.FromContext(ctx).WithValues("image", in.Image, "pool", place.Pool,
		"PVC", klog.KRef(in.Namespace, in.Claim), "PV", in.Volume)
	ctx, end, err := r.begin(klog.NewContext(ctx, logger))
	if err != nil {
		return outcomeWaiting, err
	}
	defer end()
	unlock := r.images.lock(place, in.Image)
	defer unlock()
	key := imageKey{place, in.Image}
	// What was read may be out of date: this process may have begun with the
	// claim. From here on it can't.
	if r.ledger.Holds(place, in) {
		delete(r.absent, key)
		return outcomeHeld, nil
	}
	outcome, err := r.decide(ctx, pool, place, in)
	if err != nil {
		logger.V(2).Info("Kept what an earlier attempt left, trying again", "outcome", outcome, "err", err)
	}
	if outcome != outcomeAbsent {
		delete(r.absent, key)
	} else if since, found := r.absent[key]; !found {
		r.absent[key] = time.Now()
		outcome = outcomeWaiting
	} else if time.Since(since) < absentFor {
		outcome = outcomeWaiting
	}
	if r.config.Recovered != nil && (outcome == OutcomeRemoved || outcome == OutcomeForeign || outcome == OutcomeKept) {
		r.config.Recovered(outcome)
	}
	if outcome.left() {
		return outcome, err
	}
	if in.SourceID != "" {
		if err := pool.RemoveSnapshot(ctx, in.SourceID, cloneSnapshot(in.ClaimUID)); err != nil {
			logger.V(2).Info("The snapshot for a clone could not be removed, trying again", "id", in.SourceID, "err", err)
			return outcomeWaiting, err
		}
	}
	if err := r.clearIntents(ctx, pool, in.Image); err != nil {
		logger.V(2).Info("An intent could not be cleared, trying again", "err", err)
		return outcomeWaiting, err
	}
	delete(r.absent, key)
	return outcome, nil
}

// decide finds out what became of an image and its claim, and removes the image
// if nobody else ever will.
func (r *recovery) decide(ctx context.Context, pool rbd.Pool, place journal.Place, in journal.Intent) (Outcome, error) {
	waits, err := r.claimWaits(ctx, in)
	if err != nil {
		return OutcomeKept, err
	}
	// Last, so that a volume that is saved meanwhile is seen.
	saved, err := r.hasVolume(ctx, place, in)
	switch {
	case err != nil:
		return OutcomeKept, err
	case saved:
		return outcomeSaved, nil
	case waits:
		return outcomeWaiting, nil
	}
	return r.removeLeft(ctx, pool, place, in)
}
