// SPDX-License-Identifier: Apache-2.0

package trash_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/trash"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	testPool  = "rbd"
	testImage = "kubernetes-dynamic-pvc-1234"
)

// soon is the longest that an image stays if nothing keeps it.
const soon = 3 * time.Second

// world is a running Queue, with a cluster and all else that it needs.
type world struct {
	*trash.Queue
	ceph    *rbdtest.Cluster
	client  *fake.Clientset
	access  *access.Access
	journal *journal.Journal
	// cluster is the UID of the Kubernetes cluster, from the next restart on.
	cluster string
	volumes cache.Indexer
	events  *record.FakeRecorder
	// leaseLost says that another replica may lead.
	leaseLost atomic.Bool
	// stop ends the Queue.
	stop func()

	mu      sync.Mutex // guards the fields below
	logs    []string
	purged  map[string]int // by whom
	running int            // operations on claims and volumes
	ended   time.Time      // when the last of these ended
}

// inWorld calls test in a bubble in which a Queue runs.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			ceph: rbdtest.NewCluster("10.0.0.1:6789"), client: fake.NewClientset(), cluster: "cluster-1",
			volumes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, index.Indexers()),
			events:  record.NewFakeRecorder(100), purged: map[string]int{}, stop: func() {},
		}
		w.ceph.AddPool(testPool)
		w.putKey(t, w.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key)
		w.restart(t)
		defer func() {
			w.stop()
			if n := w.ceph.Open(); n != 0 {
				t.Errorf("%d connections and pools were not closed", n)
			}
		}()
		test(t, w)
	})
}

// inManagedWorld is inWorld with an admin who may ask Ceph's manager.
func inManagedWorld(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	inWorld(t, func(t *testing.T, w *world) {
		w.allowManager(t)
		test(t, w)
	})
}

func (w *world) allowManager(t *testing.T) {
	t.Helper()
	w.putKey(t, w.ceph.AddUser("admin", rbdtest.Caps{AllPools: true, Manager: true}).Key)
}

// restart replaces the Queue, as a new process does.
func (w *world) restart(t *testing.T) {
	t.Helper()
	w.stop()
	var err error
	w.access, err = access.New(access.Config{
		Secrets: w.client.CoreV1(), Connector: w.ceph, Lease: lease.New(func() bool { return !w.leaseLost.Load() }),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.journal = journal.New(w.cluster, "ceph.com/rbd", "here")
	w.Queue, err = trash.New(trash.Config{
		Access: w.access, Journal: w.journal, Volumes: index.Volumes{Cache: w.volumes}, Events: w.events,
		Quiet: w.quiet, Purged: func(by string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.purged[by]++
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.withLog(t.Context()))
	var run sync.WaitGroup
	run.Go(func() { w.Run(ctx) })
	w.stop = func() { cancel(); run.Wait() }
}

// begin begins an operation on a claim or a volume, which runs until end is called.
func (w *world) begin() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running++
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.running--
		w.ended = time.Now()
	}
}

func (w *world) quiet(d time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running == 0 && time.Since(w.ended) >= d
}

func (w *world) putKey(t *testing.T, key rbd.Key) {
	t.Helper()
	secrets := w.client.CoreV1().Secrets("kube-system")
	_ = secrets.Delete(t.Context(), "admin", metav1.DeleteOptions{}) // there may be none
	_, err := secrets.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "admin"}, Type: access.TypeRBD,
		Data: map[string][]byte{access.KeyEntry: []byte(key.Reveal())},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func location(pool string) volume.Location {
	return volume.Location{
		Monitors: []volume.Monitor{{Host: "10.0.0.1"}}, Pool: pool, User: "admin",
		Secret: volume.SecretRef{Namespace: "kube-system", Name: "admin"},
	}
}

func (w *world) poolID() volume.PoolID { return volume.PoolID{FSID: w.ceph.FSID(), Pool: testPool} }

// inPool calls do with an open pool.
func (w *world) inPool(t *testing.T, pool string, do func(pool *access.Pool) error) error {
	t.Helper()
	open, err := w.access.Open(t.Context(), location(pool))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	return do(open)
}

// mustInPool is inPool for calls that must not fail.
func (w *world) mustInPool(t *testing.T, pool string, do func(pool *access.Pool) error) {
	t.Helper()
	if err := w.inPool(t, pool, do); err != nil {
		t.Fatal(err)
	}
}

// visit lets the Queue take up the notes of the pool.
func (w *world) visit(t *testing.T) {
	t.Helper()
	w.mustInPool(t, testPool, func(pool *access.Pool) error { return w.Visit(w.withLog(t.Context()), pool) })
}

// make makes an image.
func (w *world) make(t *testing.T, name string) {
	t.Helper()
	w.mustInPool(t, testPool, func(pool *access.Pool) error {
		return pool.CreateImage(t.Context(), name, rbd.ImageSpec{SizeBytes: 1 << 30})
	})
}

// remove does to an image what the deletion of its volume does.
func (w *world) remove(t *testing.T, pool *access.Pool, name string, keep time.Duration) error {
	defer w.begin()()
	defer w.journal.Locks.Lock(pool.ID.Image(name))()
	found, err := pool.Image(t.Context(), name)
	if errors.Is(err, rbd.ErrImageNotFound) {
		return w.finish(t, pool, name)
	}
	if err != nil {
		return err
	}
	return w.Move(t.Context(), pool, journal.Removal{
		ID: found.ID, Image: name, Volume: "pvc-1234", At: time.Now(), Keep: keep, SizeBytes: found.SizeBytes, Parent: found.Parent,
	})
}

// finish is remove for an image that nobody can open any more.
func (w *world) finish(t *testing.T, pool *access.Pool, name string) error {
	removals, _, err := w.journal.Removals.Read(t.Context(), pool)
	if err != nil {
		return err
	}
	for _, removal := range removals {
		removal.At = time.Now()
		if err := w.journal.Removals.Write(t.Context(), pool, removal); err != nil {
			return err
		}
		if err := pool.TrashImage(t.Context(), name, removal.Keep); err != nil && !errors.Is(err, rbd.ErrImageNotFound) {
			return err
		}
		w.Add(pool.ID, pool.Location, removal)
	}
	return image.RemoveIfThere(t.Context(), pool, name)
}

// trash puts an image into the trash, and returns its ID.
func (w *world) trash(t *testing.T, name string, keep time.Duration) (id string) {
	t.Helper()
	found, there := w.ceph.Image(testPool, name)
	if !there {
		t.Fatalf("there is no image %q", name)
	}
	w.mustInPool(t, testPool, func(pool *access.Pool) error { return w.remove(t, pool, name, keep) })
	return found.ID
}

// trashNew is trash for a new image.
func (w *world) trashNew(t *testing.T, keep time.Duration) (id string) {
	t.Helper()
	w.make(t, testImage)
	return w.trash(t, testImage, keep)
}

// trashByHand puts an image into the trash as a person does.
func (w *world) trashByHand(t *testing.T, name string) {
	t.Helper()
	w.mustInPool(t, testPool, func(pool *access.Pool) error { return pool.TrashImage(t.Context(), name, 0) })
}

// pass lets time pass.
func (w *world) pass(length time.Duration) {
	time.Sleep(length) // of the bubble's clock
	synctest.Wait()
}

// noted returns the IDs of the images that have a note.
func (w *world) noted() []string {
	var ids []string
	for id := range w.ceph.Notes(testPool)[w.journal.Removals.Object] {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (w *world) withLog(ctx context.Context) context.Context {
	return klog.NewContext(ctx, funcr.New(func(_, line string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.logs = append(w.logs, line)
	}, funcr.Options{Verbosity: 1}))
}

func (w *world) countLog(texts ...string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, line := range w.logs {
		if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(line, text) }) {
			n++
		}
	}
	return n
}

func checkSame[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// checkTrash checks which images, by their former names, are in the trash.
func (w *world) checkTrash(t *testing.T, want ...string) {
	t.Helper()
	checkSame(t, "the trash", want, w.ceph.Trash(testPool))
}

func (w *world) checkCounts(t *testing.T, waiting, kept int) {
	t.Helper()
	if w, k := w.Counts(); w != waiting || k != kept {
		t.Errorf("%d images wait and %d are kept, want %d and %d", w, k, waiting, kept)
	}
}

// checkPurged checks that nothing is left of any image or note.
func (w *world) checkPurged(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", nil, w.ceph.Images(testPool))
	checkSame(t, "the remains", nil, w.ceph.Remains(testPool))
	w.checkTrash(t)
	checkSame(t, "the notes", nil, w.noted())
	w.checkCounts(t, 0, 0)
}

// checkPurgedBy is checkPurged, and checks how many images Ceph's manager has removed, and
// how many this process.
func (w *world) checkPurgedBy(t *testing.T, manager, self int) {
	t.Helper()
	w.checkPurged(t)
	w.checkTold(t, manager, self)
}

func (w *world) checkTold(t *testing.T, manager, self int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	checkSame(t, "the images that the manager removed", manager, w.purged[trash.ByManager])
	checkSame(t, "the images that were removed here", self, w.purged[trash.ByProvisioner])
}
