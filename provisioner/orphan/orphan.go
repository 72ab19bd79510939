// SPDX-License-Identifier: Apache-2.0

// Package orphan cleans up after attempts to make an image for a claim that were cut
// off, or whose end is unknown: those that left an intent in the journal, and whose
// claim went before it got a volume.
package orphan

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	// visitTimeout is the time after which a visit begins no further image, so that
	// other pools get their turn.
	visitTimeout = 2 * time.Minute
	// absentFor is how long an image must be absent before its intent is cleared: a
	// call of a client that died, or of a process that was halted and goes on, may
	// still reach an OSD.
	absentFor = time.Minute
)

// Outcome says what became of a leftover image.
type Outcome string

// Settled receives these outcomes.
const (
	// OutcomeRemoved: the image was removed.
	OutcomeRemoved Outcome = "removed"
	// OutcomeForeign: the image belongs to someone else, or has data. It stays, and is
	// forgotten.
	OutcomeForeign Outcome = "foreign"
	// OutcomeKept: the image is in use, or could not be removed. Later visits retry,
	// until they reach another outcome.
	OutcomeKept Outcome = "kept"
)

// The other outcomes: there was nothing to clean up.
const (
	// outcomeSaved: there is a volume.
	outcomeSaved Outcome = "saved"
	// outcomeAbsent: there is no image.
	outcomeAbsent Outcome = "absent"
	// outcomeHeld: an operation of this process has the image.
	outcomeHeld Outcome = "held"
	// outcomeWaiting: the claim waits for its image, or the image's fate is not certain
	// yet.
	outcomeWaiting Outcome = "waiting"
)

// counted reports whether Settled receives the outcome.
func (o Outcome) counted() bool {
	return o == OutcomeRemoved || o == OutcomeForeign || o == OutcomeKept
}

// left reports whether a later visit has to come back.
func (o Outcome) left() bool { return o == OutcomeKept || o == outcomeWaiting }

// Config has what New needs. All fields are required but Settled and Cluster.
type Config struct {
	// Identity is the provisioner's, Cluster the UID of its Kubernetes cluster, or
	// empty where we may not read it.
	Identity, Cluster string
	Journal           *journal.Journal
	// Claims and Volumes ask the API server, Index the cache.
	Claims  corev1client.PersistentVolumeClaimsGetter
	Volumes corev1client.PersistentVolumesGetter
	Index   index.Volumes
	Lease   *lease.Guard
	// Settled is called with what became of each image: OutcomeKept at most once, and
	// one of the others at most once. Several goroutines call it; it may be nil.
	Settled func(Outcome)
}

// Orphans is a pools.Visitor. It is safe for concurrent use.
type Orphans struct {
	config Config

	mu sync.Mutex // guards the fields below
	// known holds what earlier visits found out about images.
	known map[volume.ImageID]knowledge
	// said holds the pools for which the log says that they have intents of another
	// version.
	said map[volume.PoolID]bool
}

type knowledge struct {
	// absent is since when the image is known to be absent; zero if it may exist.
	absent time.Time
	// counted is the last outcome that was counted.
	counted Outcome
}

// New returns Orphans, or an error that names the missing fields.
func New(c Config) (*Orphans, error) {
	if c.Identity == "" || c.Journal == nil || c.Claims == nil || c.Volumes == nil || c.Index.Cache == nil || c.Lease == nil {
		return nil, errors.New("orphan: Identity, Journal, Claims, Volumes, Index and Lease are required")
	}
	if c.Settled == nil {
		c.Settled = func(Outcome) {}
	}
	return &Orphans{config: c, known: map[volume.ImageID]knowledge{}, said: map[volume.PoolID]bool{}}, nil
}

// Visit implements pools.Visitor: it cleans up after the intents of a pool that are not
// in flight. It returns pools.ErrLeft while some have to wait, the errors of reading
// notes, and rbd.ErrPermissionDenied.
func (o *Orphans) Visit(ctx context.Context, pool *access.Pool) error {
	// Asked before the intents are read: Saved may clear those meanwhile.
	saved := o.config.Journal.InFlight.SavedIn(pool.ID)
	intents, unreadable, err := o.config.Journal.Intents.Read(ctx, pool)
	if err != nil {
		return err
	}
	o.sayUnreadable(ctx, pool.ID, unreadable)
	o.forget(pool.ID, intents)
	left := len(unreadable) > 0
	begin := time.Now()
	for _, in := range intents {
		if time.Since(begin) > visitTimeout || ctx.Err() != nil {
			left = true
			break
		}
		if slices.Contains(saved, in.Image) {
			continue // see Saved
		}
		outcome, settleErr := o.settle(ctx, pool, in)
		if err == nil && errors.Is(settleErr, rbd.ErrPermissionDenied) {
			err = settleErr
		}
		left = left || outcome.left()
	}
	if err == nil && left {
		err = pools.ErrLeft
	}
	return err
}

// sayUnreadable logs the images of unreadable intents, once.
func (o *Orphans) sayUnreadable(ctx context.Context, pool volume.PoolID, images []string) {
	o.mu.Lock()
	said := o.said[pool]
	o.said[pool] = len(images) > 0
	o.mu.Unlock()
	if !said && len(images) > 0 {
		klog.FromContext(ctx).Info("Intents of another version are left alone", "pool", pool.Pool,
			"object", o.config.Journal.Intents.Object, "images", images)
	}
}

// forget drops what is known about images that no longer have an intent.
func (o *Orphans) forget(pool volume.PoolID, intents []journal.Intent) {
	o.mu.Lock()
	defer o.mu.Unlock()
	noted := map[string]bool{}
	for _, in := range intents {
		noted[in.Image] = true
	}
	maps.DeleteFunc(o.known, func(id volume.ImageID, _ knowledge) bool { return id.PoolID == pool && !noted[id.Name] })
}

// settle cleans up after one intent. Its error, which it logs, says why an image was
// kept.
func (o *Orphans) settle(ctx context.Context, pool *access.Pool, in journal.Intent) (Outcome, error) {
	logger := klog.FromContext(ctx).WithValues("image", in.Image, "pool", pool.ID.Pool,
		"PVC", klog.KRef(in.Namespace, in.Claim), "PV", in.Volume)
	ctx, end, err := o.config.Lease.Begin(klog.NewContext(ctx, logger))
	if err != nil {
		return outcomeWaiting, err
	}
	defer end()
	id := pool.ID.Image(in.Image)
	if o.config.Journal.InFlight.Has(pool.ID, in) {
		return o.learn(id, outcomeHeld), nil // without waiting for its lock
	}
	defer o.config.Journal.Locks.Lock(id)()
	// The intent may be out of date: this process may have begun with the claim. From
	// here on it can't.
	if o.config.Journal.InFlight.Has(pool.ID, in) {
		return o.learn(id, outcomeHeld), nil
	}
	outcome, err := o.decide(ctx, pool, in)
	if err != nil {
		logger.V(2).Info("Kept what an earlier attempt left, will retry", "outcome", outcome, "err", err)
	}
	if outcome = o.learn(id, outcome); outcome.left() {
		return outcome, err
	}
	if err := o.clear(ctx, pool, in); err != nil {
		logger.V(2).Info("An intent could not be cleared, will retry", "err", err)
		return outcomeWaiting, err
	}
	return outcome, nil
}

// decide finds out what became of an image and its claim, and removes the image if no
// one else ever will.
func (o *Orphans) decide(ctx context.Context, pool *access.Pool, in journal.Intent) (Outcome, error) {
	waits, err := o.claimWaits(ctx, in)
	if err != nil {
		return outcomeWaiting, err
	}
	// Last, so that it sees a volume that is saved meanwhile.
	saved, err := o.hasVolume(ctx, pool.ID, in)
	switch {
	case err != nil:
		return outcomeWaiting, err
	case saved:
		return outcomeSaved, nil
	case waits:
		return outcomeWaiting, nil
	}
	return o.discard(ctx, pool, in)
}

// discard removes the image of an intent if the attempt made it and it is unused.
func (o *Orphans) discard(ctx context.Context, pool *access.Pool, in journal.Intent) (Outcome, error) {
	logger := klog.FromContext(ctx)
	maker := image.Maker{Pool: pool, Journal: o.config.Journal}
	fate, reason, err := maker.Discard(ctx, image.FromIntent(in, pool.ID, o.config.Identity, o.config.Cluster))
	switch fate {
	case image.Removed:
		logger.Info("Removed an image that an earlier attempt made for a claim that is gone")
		return OutcomeRemoved, nil
	case image.Foreign:
		logger.Info("Left an image with the name that an earlier attempt wanted for a claim that is gone", "reason", reason)
		return OutcomeForeign, nil
	case image.Absent:
		return outcomeAbsent, nil
	}
	if errors.Is(err, rbd.ErrImageNotFound) {
		return outcomeWaiting, err // it went while we looked at it
	}
	return OutcomeKept, err
}

// learn records the outcome of a visit and counts it. For an image that has not been
// absent for long enough, it returns outcomeWaiting.
func (o *Orphans) learn(id volume.ImageID, outcome Outcome) Outcome {
	o.mu.Lock()
	known := o.known[id]
	if outcome != outcomeAbsent {
		known.absent = time.Time{}
	} else if known.absent.IsZero() {
		known.absent = time.Now()
	}
	news := outcome.counted() && outcome != known.counted
	if news {
		known.counted = outcome
	}
	o.known[id] = known
	o.mu.Unlock()

	if news {
		o.config.Settled(outcome)
	}
	if outcome == outcomeAbsent && time.Since(known.absent) < absentFor {
		return outcomeWaiting
	}
	return outcome
}

// clear clears an intent, but first removes the snapshot from which a clone was to be
// made.
func (o *Orphans) clear(ctx context.Context, pool *access.Pool, in journal.Intent) error {
	if in.SourceID != "" {
		if err := pool.RemoveSnapshot(ctx, in.SourceID, image.CloneSnapshot(in.ClaimUID)); err != nil {
			return err
		}
	}
	return o.config.Journal.Settle(ctx, pool, pool.ID, in.Image)
}
