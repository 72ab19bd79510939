// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/cluster"
)

// senders is how many requests make or delete the claims of a burst at a time.
const senders = 10

const small = "1Gi"

// alone is how long nothing happens before a single claim. The provisioner reads a secret
// at most once a second: for a claim that is alone, it reads the secret.
const alone = 1100 * time.Millisecond

// bench is one run.
type bench struct {
	*options
	rig        *cluster.Cluster
	watch      *observer
	contenders []*contender
	report     *report
	say        func(string)
	claims     int // made so far, for their names
}

func newBench(ctx context.Context, o *options, rig *cluster.Cluster, binary string, say func(string)) (*bench, error) {
	b := &bench{options: o, rig: rig, contenders: contenders(o, binary, rig.Dir), say: say}
	say("Building the contenders")
	if err := build(ctx, o.Root, rig.Dir); err != nil {
		return nil, err
	}
	if err := b.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare the rig: %w", err)
	}
	var err error
	if b.report, err = newReport(ctx, o, rig); err != nil {
		return nil, err
	}
	b.watch, err = newObserver(ctx, rig.Kube.RESTConfig())
	return b, err
}

func (b *bench) close() { b.watch.close() }

// measure takes all measurements, in this order.
func (b *bench) measure(ctx context.Context) error {
	for round := range b.Rounds {
		for _, c := range turn(b.contenders, round) {
			if err := b.session(ctx, c, round, c.bursts, 0); err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, c.name, err)
			}
		}
	}
	if err := b.sizes(ctx); err != nil {
		return fmt.Errorf("volumes of %s and %s: %w", small, b.Large, err)
	}
	c := b.contender(this)
	if err := b.populate(ctx, c); err != nil {
		return fmt.Errorf("fill the cluster with %d volumes: %w", b.Volumes, err)
	}
	for round := range b.Rounds {
		for _, c := range turn(b.contenders, round) {
			// There is nothing more to learn about the baseline here.
			if c.name == baseline {
				continue
			}
			if err := b.session(ctx, c, round, []int{b.top()}, b.Volumes); err != nil {
				return fmt.Errorf("round %d with %d volumes, %s: %w", round+1, b.Volumes, c.name, err)
			}
		}
	}
	if err := b.idle(ctx, c); err != nil {
		return fmt.Errorf("idle: %w", err)
	}
	return nil
}

// turn makes another contender begin each round.
func turn(list []*contender, round int) []*contender {
	n := round % len(list)
	return slices.Concat(list[n:], list[:n])
}

func (b *bench) contender(name string) *contender {
	return b.contenders[slices.IndexFunc(b.contenders, func(c *contender) bool { return c.name == name })]
}

// session measures one process from its start to its end, with other volumes in the
// cluster.
func (b *bench) session(ctx context.Context, c *contender, round int, bursts []int, volumes int) error {
	defer b.watch.forget()
	s := session{Contender: c.name, Round: round + 1, Volumes: volumes}
	// A claim that waits when the process starts, and warms it up.
	first, err := b.create(ctx, c.class(), 1, small)
	if err != nil {
		return err
	}
	begin := time.Now()
	p, err := b.start(ctx, c)
	if err != nil {
		return err
	}
	saved, err := b.watch.wait(ctx, "the first claim has a volume", b.watch.saved, first.uids)
	if err != nil {
		return err
	}
	s.StartSeconds = saved.Sub(begin).Seconds()
	if _, err := b.remove(ctx, first); err != nil {
		return err
	}
	for range c.singles {
		single, err := b.single(ctx, c)
		if err != nil {
			return err
		}
		s.Singles = append(s.Singles, single)
	}
	for _, n := range bursts {
		burst, err := b.burst(ctx, c, p, n)
		if err != nil {
			return fmt.Errorf("burst of %d: %w", n, err)
		}
		s.Bursts = append(s.Bursts, burst)
		b.say(fmt.Sprintf("round %d, %d volumes, %-8s %4d claims: %6.1f saved/s, %6.1f bound/s, %6.1f deleted/s, %5.1f ms CPU, %4.1f requests",
			round+1, volumes, c.name, n, burst.rate(burst.SavedSeconds), burst.rate(burst.BoundSeconds), burst.rate(burst.GoneSeconds),
			1000*burst.CPUSeconds/float64(n), burst.Requests/float64(n)))
	}
	if s.PeakRSSBytes, err = p.stop(); err != nil {
		return err
	}
	b.report.Sessions = append(b.report.Sessions, s)
	return nil
}

// batch are claims that were made together.
type batch struct {
	names []string
	uids  []types.UID
}

// create makes n claims, several at a time.
func (b *bench) create(ctx context.Context, class string, n int, size string) (batch, error) {
	var made batch
	for range n {
		b.claims++
		made.names = append(made.names, fmt.Sprintf("claim-%06d", b.claims))
	}
	made.uids = make([]types.UID, n)
	err := parallel(n, func(i int) error {
		claim, err := b.rig.Kube.Client.CoreV1().PersistentVolumeClaims(claimNamespace).Create(ctx, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: made.names[i]},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				StorageClassName: ptr.To(class),
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: resource.MustParse(size),
				}},
			},
		}, metav1.CreateOptions{})
		if err == nil {
			made.uids[i] = claim.UID
		}
		return err
	})
	return made, err
}

// remove deletes claims, several at a time, once they are bound, and returns how
// long it took from the first request until their volumes were gone.
func (b *bench) remove(ctx context.Context, claims batch) (time.Duration, error) {
	if _, err := b.watch.wait(ctx, "claims are bound", b.watch.bound, claims.uids); err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := parallel(len(claims.names), func(i int) error {
		return b.rig.Kube.Client.CoreV1().PersistentVolumeClaims(claimNamespace).Delete(ctx, claims.names[i], metav1.DeleteOptions{})
	}); err != nil {
		return 0, err
	}
	last, err := b.watch.wait(ctx, "volumes are gone", b.watch.gone, claims.uids)
	return last.Sub(begin), err
}

// parallel calls do with 0 to n-1, senders of them at a time.
func parallel(n int, do func(int) error) error {
	next := make(chan int)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for range min(n, senders) {
		wg.Go(func() {
			for i := range next {
				errs[i] = do(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return errors.Join(errs...)
}

// single makes one claim, and deletes it, while nothing else happens.
func (b *bench) single(ctx context.Context, c *contender) (single, error) {
	var s single
	if err := pause(ctx, max(c.rest, alone)); err != nil {
		return s, err
	}
	begin := time.Now()
	claim, err := b.create(ctx, c.class(), 1, small)
	if err != nil {
		return s, err
	}
	saved, err := b.watch.wait(ctx, "the claim has a volume", b.watch.saved, claim.uids)
	if err != nil {
		return s, err
	}
	bound, err := b.watch.wait(ctx, "the claim is bound", b.watch.bound, claim.uids)
	if err != nil {
		return s, err
	}
	if err := pause(ctx, c.rest); err != nil {
		return s, err
	}
	gone, err := b.remove(ctx, claim)
	return single{
		SavedMs: milliseconds(saved.Sub(begin)),
		BoundMs: milliseconds(bound.Sub(begin)),
		GoneMs:  milliseconds(gone),
	}, err
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// pause lets time pass, where that is what is measured or what refills a limit.
func pause(ctx context.Context, d time.Duration) error {
	if d == 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// burst makes n claims at once and deletes them. It counts CPU and requests until nothing
// of them is left, in the pool either.
func (b *bench) burst(ctx context.Context, c *contender, p *process, n int) (burst, error) {
	result := burst{Claims: n}
	// Claims of before may still be removed in the background.
	if err := b.emptied(ctx, c.pool); err != nil {
		return result, err
	}
	before, err := p.settled(ctx)
	if err != nil {
		return result, err
	}
	begin := time.Now()
	claims, err := b.create(ctx, c.class(), n, small)
	if err != nil {
		return result, err
	}
	saved, err := b.watch.wait(ctx, "claims have volumes", b.watch.saved, claims.uids)
	if err != nil {
		return result, err
	}
	bound, err := b.watch.wait(ctx, "claims are bound", b.watch.bound, claims.uids)
	if err != nil {
		return result, err
	}
	// What comes after that, such as events, is no part of the deletion.
	if _, err := p.settled(ctx); err != nil {
		return result, err
	}
	gone, err := b.remove(ctx, claims)
	if err != nil {
		return result, err
	}
	if err := b.emptied(ctx, c.pool); err != nil {
		return result, err
	}
	after, err := p.settled(ctx)
	if err != nil {
		return result, err
	}
	used := after.since(before)
	result.SavedSeconds = saved.Sub(begin).Seconds()
	result.BoundSeconds = bound.Sub(begin).Seconds()
	result.GoneSeconds = gone.Seconds()
	result.CPUSeconds = used.cpu.Seconds()
	result.Requests = used.requests - used.leases
	result.Kinds = used.kinds
	return result, nil
}

// emptied waits until a pool has neither images nor trash: removals in the background use
// the same cores, and would disturb the next measurement.
func (b *bench) emptied(ctx context.Context, pool string) error {
	if pool == "" {
		return nil
	}
	return cluster.Eventually(ctx, patience, func(ctx context.Context) error {
		images, err := b.rig.Ceph.Images(ctx, pool)
		if err != nil {
			return err
		}
		trash, err := b.rig.Ceph.Trash(ctx, pool)
		if err == nil && len(images)+len(trash) > 0 {
			err = fmt.Errorf("pool %s still has %d images, and %d in its trash", pool, len(images), len(trash))
		}
		return err
	})
}
