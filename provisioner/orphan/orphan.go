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
)

const (
	// visitTimeout is the time after which a visit begins no further image, so that
	// other pools get their turn.
	visitTimeout = 2 * time.Minute
	// absentFor is how long an image must be absent before its intent is cleared: a call by a
	// client that died, or was stopped and goes on, may still reach an OSD.
	absentFor = time.Minute
)

// Outcome says what became of a leftover image.
type Outcome = image.Fate

// The outcomes that Settled receives.
const (
	OutcomeRemoved = image.Removed
	OutcomeForeign = image.Foreign // it is forgotten
	OutcomeKept    = image.Kept    // later visits retry
)

// The other outcomes.
const (
	outcomeAbsent          = image.Absent
	outcomeSaved   Outcome = "saved"   // there is a volume
	outcomeHeld    Outcome = "held"    // this process is at work on the image
	outcomeWaiting Outcome = "waiting" // the claim waits for its image, or not all is known
)

// isLeft reports whether a later visit has to come back.
func isLeft(o Outcome) bool { return o == OutcomeKept || o == outcomeWaiting }

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
	// Trash notes and moves a large image to the trash, like trash.Queue.Move: its removal
	// here would hold up all others.
	Trash func(ctx context.Context, pool *access.Pool, removal journal.Removal) error
	// Settled is called with what became of each image: OutcomeKept at most once, and
	// one of the others at most once. Several goroutines call it; it may be nil.
	Settled func(Outcome)
}

// Orphans is a pools.Visitor: visits of one pool must come one after the other, those of
// several may run at the same time.
type Orphans struct {
	config Config
	// memories has the *memory of each volume.PoolID.
	memories sync.Map
}

// memory is what earlier visits found out about a pool.
type memory struct {
	images map[string]knowledge
	// logged tells that its intents of another version are in the log.
	logged bool
}

type knowledge struct {
	// absent is since when the image is known to be absent; zero if it may exist.
	absent time.Time
	// counted is the last outcome that was counted.
	counted Outcome
}

// visit is one visit of a pool.
type visit struct {
	Config
	pool   *access.Pool
	memory *memory
}

// New returns Orphans, or an error that names the missing fields.
func New(c Config) (*Orphans, error) {
	if c.Identity == "" || c.Journal == nil || c.Claims == nil || c.Volumes == nil || c.Index.Cache == nil || c.Lease == nil || c.Trash == nil {
		return nil, errors.New("orphan: Identity, Journal, Claims, Volumes, Index, Lease and Trash are required")
	}
	if c.Settled == nil {
		c.Settled = func(Outcome) {}
	}
	return &Orphans{config: c}, nil
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
	earlier, _ := o.memories.LoadOrStore(pool.ID, &memory{images: map[string]knowledge{}})
	v := visit{o.config, pool, earlier.(*memory)}
	maps.DeleteFunc(v.memory.images, func(image string, _ knowledge) bool {
		return !slices.ContainsFunc(intents, func(in journal.Intent) bool { return in.Image == image })
	})
	left := len(unreadable) > 0
	if left && !v.memory.logged {
		klog.FromContext(ctx).Info("Intents of another version are left alone", "pool", pool.ID.Pool,
			"object", o.config.Journal.Intents.Object, "images", unreadable)
	}
	v.memory.logged = left
	begin := time.Now()
	for _, in := range intents {
		if time.Since(begin) > visitTimeout || ctx.Err() != nil {
			left = true
			break
		}
		if slices.Contains(saved, in.Image) {
			continue // see Saved
		}
		outcome, settleErr := v.settle(ctx, in)
		if err == nil && errors.Is(settleErr, rbd.ErrPermissionDenied) {
			err = settleErr
		}
		left = left || isLeft(outcome)
	}
	if err == nil && left {
		err = pools.ErrLeft
	}
	return err
}

// settle cleans up after one intent. Its error, which it logs, says why an image was kept.
func (v visit) settle(ctx context.Context, in journal.Intent) (Outcome, error) {
	logger := klog.FromContext(ctx).WithValues("image", in.Image, "pool", v.pool.ID.Pool, "PVC", klog.KRef(in.Namespace, in.Claim), "PV", in.Volume)
	ctx, end, err := v.Lease.Begin(klog.NewContext(ctx, logger))
	if err != nil {
		return outcomeWaiting, err
	}
	defer end()
	if v.Journal.InFlight.Has(v.pool.ID, in) {
		return v.learn(in.Image, outcomeHeld), nil // without waiting for its lock
	}
	defer v.Journal.Locks.Lock(v.pool.ID.Image(in.Image))()
	outcome, err := v.decide(ctx, in)
	if err != nil {
		logger.V(2).Info("Kept what an earlier attempt left, will retry", "outcome", outcome, "err", err)
	}
	if outcome = v.learn(in.Image, outcome); isLeft(outcome) || outcome == outcomeHeld {
		return outcome, err
	}
	if err := v.clear(ctx, in); err != nil {
		logger.V(2).Info("An intent could not be cleared, will retry", "err", err)
		return outcomeWaiting, err
	}
	return outcome, nil
}

// decide looks at an intent's claim and volume, and removes an image that nobody else will.
func (v visit) decide(ctx context.Context, in journal.Intent) (Outcome, error) {
	if v.Journal.InFlight.Has(v.pool.ID, in) {
		return outcomeHeld, nil // begun since; it can't begin from here on
	}
	waits, err := v.claimWaits(ctx, in)
	if err != nil {
		return outcomeWaiting, err
	}
	// Last, so that it sees a volume that is saved meanwhile.
	saved, err := v.hasVolume(ctx, in)
	switch {
	case err != nil:
		return outcomeWaiting, err
	case saved:
		return outcomeSaved, nil
	case waits:
		return outcomeWaiting, nil
	}
	return v.discard(ctx, in)
}

// discard removes the image of an intent if the attempt made it and it is unused.
func (v visit) discard(ctx context.Context, in journal.Intent) (Outcome, error) {
	logger := klog.FromContext(ctx)
	maker := image.Maker{Pool: v.pool, Journal: v.Journal}
	fate, reason, err := maker.Discard(ctx, image.FromIntent(in, v.pool.ID, v.Identity, v.Cluster), func(found rbd.Image) error {
		return v.Trash(ctx, v.pool, journal.Removal{
			ID: found.ID, Image: in.Image, Volume: in.Volume, At: time.Now(), SizeBytes: found.SizeBytes, Parent: found.Parent,
		})
	})
	switch {
	case fate == image.Removed:
		logger.Info("Removed an image that an earlier attempt made for a claim that is gone")
	case fate == image.Foreign:
		logger.Info("Left an image with the name that an earlier attempt wanted for a claim that is gone", "reason", reason)
	case errors.Is(err, rbd.ErrImageNotFound):
		return outcomeWaiting, err // it went while we looked at it
	}
	return fate, err
}

// learn records the outcome of a visit and counts it. For an image that has not been
// absent for long enough, it returns outcomeWaiting.
func (v visit) learn(image string, outcome Outcome) Outcome {
	known := v.memory.images[image]
	if outcome != outcomeAbsent {
		known.absent = time.Time{}
	} else if known.absent.IsZero() {
		known.absent = time.Now()
	}
	counts := outcome == OutcomeRemoved || outcome == OutcomeForeign || outcome == OutcomeKept
	if counts && outcome != known.counted {
		known.counted = outcome
		v.Settled(outcome)
	}
	v.memory.images[image] = known
	if outcome == outcomeAbsent && time.Since(known.absent) < absentFor {
		return outcomeWaiting
	}
	return outcome
}

// clear clears an intent, but first removes the snapshot that a clone was to be made from.
func (v visit) clear(ctx context.Context, in journal.Intent) error {
	if in.SourceID != "" {
		if err := v.pool.RemoveSnapshot(ctx, in.SourceID, image.CloneSnapshot(in.ClaimUID)); err != nil {
			return err
		}
	}
	return v.Journal.Settle(ctx, v.pool, v.pool.ID, in.Image)
}

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
