// SPDX-License-Identifier: Apache-2.0

package orphan_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/orphan"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	testName     = "ceph.com/rbd"
	testIdentity = "here"
	testCluster  = "cluster-1"
	testPool     = "rbd"
	testVolume   = "pvc-1234"
	testImage    = "kubernetes-dynamic-pvc-1234"
	gib          = 1 << 30
)

// absentFor is for how long an image must be absent before its intent is cleared.
const absentFor = time.Minute

// world has a provisioner's Orphans, and the Kubernetes and the Ceph cluster around them.
type world struct {
	*orphan.Orphans
	ceph    *rbdtest.Cluster
	client  *fake.Clientset
	volumes cache.Indexer // the cache
	access  *access.Access
	// journal, guard and Orphans are those of one process: restart makes new ones.
	journal   *journal.Journal
	guard     *lease.Guard
	leaseLost atomic.Bool
	// cluster and identity are those of the next process.
	cluster, identity string

	mu       sync.Mutex // guards what follows
	outcomes []orphan.Outcome
	trashed  []journal.Removal
	logs     []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{
		ceph:    rbdtest.NewCluster("10.0.0.1:6789"),
		client:  fake.NewClientset(),
		volumes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, index.Indexers()),
		cluster: testCluster, identity: testIdentity,
	}
	w.ceph.AddPool(testPool)
	w.putKey(t, rbdtest.Caps{AllPools: true})
	w.putClaim(t, func(*corev1.PersistentVolumeClaim) {})
	w.restart(t)
	return w
}

// restart has another process lead.
func (w *world) restart(t *testing.T) {
	t.Helper()
	w.leaseLost.Store(false)
	w.guard = lease.New(func() bool { return !w.leaseLost.Load() })
	w.journal = journal.New(w.cluster, testName, w.identity)
	var err error
	if w.access, err = access.New(access.Config{Secrets: w.client.CoreV1(), Connector: w.ceph, Lease: w.guard}); err != nil {
		t.Fatal(err)
	}
	w.Orphans, err = orphan.New(orphan.Config{
		Identity: w.identity,
		Cluster:  w.cluster,
		Journal:  w.journal,
		Claims:   w.client.CoreV1(),
		Volumes:  w.client.CoreV1(),
		Index:    index.Volumes{Cache: w.volumes},
		Lease:    w.guard,
		Trash: func(ctx context.Context, pool *access.Pool, removal journal.Removal) error {
			w.trashed = append(w.trashed, removal)
			return pool.TrashImage(ctx, removal.Image, removal.Keep)
		},
		Settled: func(o orphan.Outcome) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.outcomes = append(w.outcomes, o)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// putKey gives the provisioner's user its caps, and its new key into the secret.
func (w *world) putKey(t *testing.T, caps rbdtest.Caps) {
	t.Helper()
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "admin"},
		Type:       access.TypeRBD,
		Data:       map[string][]byte{access.KeyEntry: []byte(w.ceph.AddUser("admin", caps).Key.Reveal())},
	}
	// It may be missing.
	_ = w.client.CoreV1().Secrets(s.Namespace).Delete(t.Context(), s.Name, metav1.DeleteOptions{})
	if _, err := w.client.CoreV1().Secrets(s.Namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) open(t *testing.T) *access.Pool {
	t.Helper()
	pool, err := w.access.Open(t.Context(), volume.Location{
		Monitors: []volume.Monitor{{Host: "10.0.0.1"}}, Pool: testPool, User: "admin",
		Secret: volume.SecretRef{Namespace: "kube-system", Name: "admin"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

func (w *world) putClaim(t *testing.T, change func(*corev1.PersistentVolumeClaim)) {
	t.Helper()
	w.dropClaim(t)
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "data", UID: "1234"}}
	change(claim)
	if _, err := w.client.CoreV1().PersistentVolumeClaims("apps").Create(t.Context(), claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) dropClaim(t *testing.T) {
	t.Helper()
	// It may be missing.
	_ = w.client.CoreV1().PersistentVolumeClaims("apps").Delete(t.Context(), "data", metav1.DeleteOptions{})
}

// unwanted are the ways in which a claim stops wanting its volume.
func unwanted() map[string]func(*testing.T, *world) {
	live := func(change func(*corev1.PersistentVolumeClaim)) func(*testing.T, *world) {
		return func(t *testing.T, w *world) { w.putClaim(t, change) }
	}
	return map[string]func(*testing.T, *world){
		"the claim is gone":                 func(t *testing.T, w *world) { w.dropClaim(t) },
		"another claim has its name":        live(func(c *corev1.PersistentVolumeClaim) { c.UID = "5678" }),
		"another claim has its name, bound": live(func(c *corev1.PersistentVolumeClaim) { c.UID, c.Spec.VolumeName = "5678", "pvc-5678" }),
		"the claim is bound elsewhere":      live(func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "by-hand" }),
		"the claim is going": live(func(c *corev1.PersistentVolumeClaim) {
			c.DeletionTimestamp = &metav1.Time{Time: time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)}
			c.Finalizers = []string{"kubernetes.io/pvc-protection"}
		}),
	}
}

// wanted is the image for the claim.
func (w *world) wanted() image.Wanted {
	return image.FromIntent(testIntent(), volume.PoolID{FSID: w.ceph.FSID(), Pool: testPool}, w.identity, w.cluster)
}

func testIntent() journal.Intent {
	return journal.Intent{
		Image: testImage, Namespace: "apps", Claim: "data", ClaimUID: "1234", Volume: testVolume, SizeBytes: gib,
	}
}

// make makes an image as the program does: it is in flight until that fails.
func (w *world) make(t *testing.T, want image.Wanted) error {
	t.Helper()
	pool := w.open(t)
	defer pool.Close()
	end := w.journal.Begin(pool.ID, want.Intent())
	_, err := image.Maker{Pool: pool, Journal: w.journal, MaxCloneDepth: 4}.Make(w.withLog(t.Context()), want)
	end(err)
	return err
}

func (w *world) mustMake(t *testing.T) {
	t.Helper()
	if err := w.make(t, w.wanted()); err != nil {
		t.Fatal(err)
	}
}

// seed makes an image without the program.
func (w *world) seed(t *testing.T, name string, size uint64, metadata map[string]string) {
	t.Helper()
	cluster, err := w.ceph.Connect(t.Context(), w.ceph.AddUser("somebody", rbdtest.Caps{AllPools: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	pool, err := cluster.OpenPool(t.Context(), testPool)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := errors.Join(pool.CreateImage(t.Context(), name, rbd.ImageSpec{SizeBytes: size}), pool.SetMetadata(t.Context(), name, metadata)); err != nil {
		t.Fatal(err)
	}
}

// note writes an intent, as an earlier process did.
func (w *world) note(t *testing.T, in journal.Intent) {
	t.Helper()
	pool := w.open(t)
	defer pool.Close()
	if err := w.journal.Intents.Write(t.Context(), pool, in); err != nil {
		t.Fatal(err)
	}
}

// save stores the image's volume as the library does, in the API but not in the cache.
func (w *world) save(t *testing.T, change func(*corev1.PersistentVolume)) {
	t.Helper()
	if _, err := w.client.CoreV1().PersistentVolumes().Create(t.Context(), w.volume(change), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// show puts the image's volume into the cache.
func (w *world) show(t *testing.T, change func(*corev1.PersistentVolume)) {
	t.Helper()
	if err := w.volumes.Add(w.volume(change)); err != nil {
		t.Fatal(err)
	}
}

func (w *world) volume(change func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: testVolume, UID: types.UID("uid")}}
	volume.Record{
		Identity: testIdentity, FSID: w.ceph.FSID(), Monitors: []string{"10.0.0.1:6789"}, Pool: testPool, Image: testImage,
		Admin: "admin", AdminSecret: volume.SecretRef{Namespace: "kube-system", Name: "admin"},
	}.Write(pv)
	change(pv)
	return pv
}

func asItIs(*corev1.PersistentVolume) {}

// visit visits the pool once, and checks that it leaves no connection open.
func (w *world) visit(t *testing.T) error {
	t.Helper()
	pool := w.open(t)
	err := w.Visit(w.withLog(t.Context()), pool)
	pool.Close()
	if n := w.ceph.Open(); n != 0 {
		t.Errorf("%d connections and pools were not closed", n)
	}
	return err
}

// visitAll visits the pool until nothing is left to be done, at most for an hour, and
// returns how many visits it took. If anything has to wait, it needs a bubble.
func (w *world) visitAll(t *testing.T) int {
	t.Helper()
	var err error
	for n := 1; n <= 12; n++ {
		if err = w.visit(t); err == nil {
			return n
		}
		time.Sleep(5 * time.Minute) // of the bubble's clock
	}
	t.Errorf("after an hour: %v; the log:\n%s", err, strings.Join(w.logged(), "\n"))
	return 0
}

// withLog returns a context with a logger that keeps every line for logged.
func (w *world) withLog(ctx context.Context) context.Context {
	return klog.NewContext(ctx, funcr.New(func(_, line string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.logs = append(w.logs, line)
	}, funcr.Options{Verbosity: 10}))
}

func (w *world) logged() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.logs)
}

// counted returns the outcomes since the last call.
func (w *world) counted() []orphan.Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.outcomes
	w.outcomes = nil
	return list
}

// checkMade checks that the claim's image is there as it must be, and nothing else.
func (w *world) checkMade(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", []string{testImage}, w.ceph.Images(testPool))
	checkSame(t, "the remains", nil, w.ceph.Remains(testPool))
	image, _ := w.ceph.Image(testPool, testImage)
	image.ID = "" // any will do
	checkSame(t, "the image", rbd.Image{SizeBytes: gib, Features: []string{rbd.FeatureLayering}, Metadata: w.wanted().Owner.Marks()}, image)
}

// checkNothing checks that there is neither an image nor what is left of one.
func (w *world) checkNothing(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", nil, w.ceph.Images(testPool))
	checkSame(t, "the remains", nil, w.ceph.Remains(testPool))
	checkSame(t, "the trash", nil, w.ceph.Trash(testPool))
}

// intents returns the images of all intents in the pool, of any journal.
func (w *world) intents() []string {
	var images []string
	for _, notes := range w.ceph.Notes(testPool) {
		for image := range notes {
			images = append(images, image)
		}
	}
	slices.Sort(images)
	return images
}

func (w *world) checkIntents(t *testing.T, want ...string) {
	t.Helper()
	checkSame(t, "the intents", want, w.intents())
}

func checkSame[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
