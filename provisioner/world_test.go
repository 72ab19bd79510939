// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"

	"ceph.com/rbd-provisioner/provisioner"
	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/flatten"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/orphan"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/trash"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// process has the parts of one process, connected as the program connects them. A test
// begins its loops one by one, to see between two of them what each has to do.
type process struct {
	*provisioner.Provisioner
	guard   *lease.Guard
	access  *access.Access
	journal *journal.Journal
	trash   *trash.Queue
	flatten *flatten.Queue
	orphans *orphan.Orphans
	pools   *pools.Rounds

	ctx     context.Context //nolint:containedctx // of the process, which ends it
	loops   sync.WaitGroup
	begun   map[string]bool
	stopped func()
}

// restart replaces the process by a new one, which leads. The old one ends as if it was
// killed.
func (f *fixture) restart(t *testing.T) {
	t.Helper()
	if f.process != nil {
		f.stopped()
	}
	p := &process{begun: map[string]bool{}}
	ctx, cancel := context.WithCancel(f.withLog(context.WithoutCancel(t.Context())))
	p.ctx = ctx
	f.leaseLost.Store(false)
	p.guard = lease.New(func() bool { return !f.leaseLost.Load() })
	activity := new(lease.Activity)
	p.journal = journal.New(f.clusterUID, provisioner.DefaultName, f.identity)
	volumes := index.Volumes{Cache: f.volumes}
	var err error
	must := func() {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p.access, err = access.New(access.Config{Secrets: f.client.CoreV1(), Connector: f.connector, Resolver: f.names, Lease: p.guard})
	must()
	p.trash, err = trash.New(trash.Config{
		Access: p.access, Journal: p.journal, Volumes: volumes, Events: f.events, Quiet: activity.Quiet,
		Purged: func(string) {},
	})
	must()
	p.flatten, err = flatten.New(flatten.Config{
		Access: p.access, Cluster: f.clusterUID,
		Flattened: func(pool volume.PoolID, parent string) {
			f.flattened++
			p.trash.Wake(pool, parent)
		},
	})
	must()
	p.orphans, err = orphan.New(orphan.Config{
		Identity: f.identity, Cluster: f.clusterUID, Journal: p.journal, Claims: f.client.CoreV1(), Volumes: f.client.CoreV1(),
		Index: volumes, Lease: p.guard, Trash: p.trash.Move,
	})
	must()
	p.pools, err = pools.New(pools.Config{
		Name: provisioner.DefaultName, Identity: f.identity,
		Classes: storagelisters.NewStorageClassLister(f.classes), Volumes: corelisters.NewPersistentVolumeLister(f.volumes),
		Access: p.access, Visitors: []pools.Visitor{p.trash, orphan.Saved{Journal: p.journal}, p.orphans},
	})
	must()
	p.journal.InFlight.OnEnd(p.pools.Again)
	p.Provisioner, err = provisioner.New(provisioner.Config{
		Name:          provisioner.DefaultName,
		Identity:      f.identity,
		UsePVName:     f.usePVName,
		ClusterUID:    f.clusterUID,
		Claims:        f.client.CoreV1(),
		ClaimLister:   corelisters.NewPersistentVolumeClaimLister(f.claims),
		Volumes:       f.client.CoreV1(),
		VolumeLister:  corelisters.NewPersistentVolumeLister(f.volumes),
		VolumeIndex:   volumes,
		Classes:       storagelisters.NewStorageClassLister(f.classes),
		Access:        p.access,
		Journal:       p.journal,
		Trash:         p.trash,
		Flattener:     p.flatten,
		Nodes:         f.nodes,
		Events:        f.events,
		Sized:         func(runtime.Object, int64) {},
		MaxCloneDepth: f.maxCloneDepth,
		Lease:         p.guard,
		Activity:      activity,
	})
	must()
	// A queue has goroutines until its Run returns.
	p.stopped = sync.OnceFunc(func() {
		cancel()
		p.begin("trash", p.trash.Run)
		p.begin("flatten", p.flatten.Run)
		p.begin("pools", p.pools.Run)
		p.begin("by hand", p.RunByHand)
		p.loops.Wait()
	})
	t.Cleanup(p.stopped)
	f.process = p
}

// begin begins a loop unless it runs already.
func (p *process) begin(name string, loop func(context.Context)) {
	if !p.begun[name] {
		p.begun[name] = true
		p.loops.Go(func() { loop(p.ctx) })
	}
}

// pass lets time pass; what is due then happens.
func (f *fixture) pass(t *testing.T, length time.Duration) {
	t.Helper()
	time.Sleep(length) // of the bubble's clock
	synctest.Wait()
}

// purgeFor lets time pass while the trash is emptied.
func (f *fixture) purgeFor(t *testing.T, length time.Duration) {
	t.Helper()
	f.begin("trash", f.trash.Run)
	f.pass(t, length)
	f.checkAfter(t, nil)
}

// flattenFor lets time pass while clones are flattened.
func (f *fixture) flattenFor(t *testing.T, length time.Duration) {
	t.Helper()
	f.begin("flatten", f.flatten.Run)
	f.pass(t, length)
}

// recoverAll lets time pass while the pools are visited, to clean up after earlier
// attempts.
func (f *fixture) recoverAll(t *testing.T) {
	t.Helper()
	f.begin("pools", f.pools.Run)
	f.pass(t, 20*time.Minute)
	f.checkAfter(t, nil)
}

// putToTrash deletes a volume, which moves its image to the trash, and returns the
// image's ID.
func (f *fixture) putToTrash(t *testing.T, pv *corev1.PersistentVolume) (id string) {
	t.Helper()
	image, found := f.ceph.Image(testPool, testImage)
	if !found {
		t.Fatal("there is no image")
	}
	if err := f.Delete(f.withLog(t.Context()), pv); err != nil {
		t.Fatal(err)
	}
	checkSame(t, "the images", nil, f.ceph.Images(testPool))
	checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
	return image.ID
}

// noted returns the IDs of the images whose deletion is pending.
func (f *fixture) noted() []string {
	return slices.Sorted(maps.Keys(f.ceph.Notes(testPool)[f.journal.Removals.Object]))
}

// checkPurged checks that nothing is left of the image, nor of the note about it.
func (f *fixture) checkPurged(t *testing.T) {
	t.Helper()
	f.checkNothing(t)
	checkSame(t, "the notes", nil, f.noted())
	if waiting, kept := f.trash.Counts(); waiting+kept != 0 {
		t.Errorf("%d images wait and %d are kept", waiting, kept)
	}
}

func (f *fixture) countLog(text string) int {
	n := 0
	for _, line := range f.logged() {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// location is that of the class.
func (f *fixture) location(t *testing.T) volume.Location {
	t.Helper()
	l, err := storageclass.ParseLocation(f.options.StorageClass.Parameters)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// save puts a volume into the API, as the library does.
func (f *fixture) save(t *testing.T, pv *corev1.PersistentVolume) *corev1.PersistentVolume {
	t.Helper()
	pv = pv.DeepCopy()
	metav1.SetMetaDataAnnotation(&pv.ObjectMeta, volume.AnnProvisionedBy, provisioner.DefaultName)
	if _, err := f.client.CoreV1().PersistentVolumes().Create(t.Context(), pv, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return pv
}

// intents returns the images that have an intent.
func (f *fixture) intents() []string {
	return slices.Sorted(maps.Keys(f.ceph.Notes(testPool)[f.journal.Intents.Object]))
}

func (f *fixture) checkIntents(t *testing.T, want ...string) {
	t.Helper()
	checkSame(t, "the intents", want, f.intents())
}

// inBubble runs a test in a bubble, whose clock advances only while all wait.
func inBubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}
