// SPDX-License-Identifier: Apache-2.0

package pools_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/pools"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	testName     = "ceph.com/rbd"
	testIdentity = "here"
	testPool     = "rbd"
)

// world has Rounds, and the Kubernetes and the Ceph clusters around them.
type world struct {
	*pools.Rounds
	ceph, other *rbdtest.Cluster
	connector   *FakeConnector // to both
	client      *fake.Clientset
	access      *access.Access
	// classes and volumes are the caches.
	classes, volumes cache.Indexer

	mu   sync.Mutex // guards logs
	logs []string
}

// newWorld returns a world without classes and volumes. Ceph's monitors are 10.0.0.1 and
// 10.0.0.2, those of another cluster 10.0.1.1.
func newWorld(t *testing.T, visitors ...pools.Visitor) *world {
	t.Helper()
	w := &world{
		ceph:    rbdtest.NewCluster("10.0.0.1:6789", "10.0.0.2:6789"),
		other:   rbdtest.NewCluster("10.0.1.1:6789"),
		client:  fake.NewClientset(),
		classes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
		volumes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
	}
	for _, c := range []*rbdtest.Cluster{w.ceph, w.other} {
		c.AddPool(testPool)
	}
	w.putKey(t, "admin", w.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key)
	w.putKey(t, "other", w.other.AddUser("admin", rbdtest.Caps{AllPools: true}).Key)
	w.connector = &FakeConnector{rbdtest.NewConnector(w.ceph, w.other)}
	var err error
	w.access, err = access.New(access.Config{Secrets: w.client.CoreV1(), Connector: w.connector})
	if err != nil {
		t.Fatal(err)
	}
	w.Rounds, err = pools.New(pools.Config{
		Name: testName, Identity: testIdentity,
		Classes:  storagelisters.NewStorageClassLister(w.classes),
		Volumes:  corelisters.NewPersistentVolumeLister(w.volumes),
		Access:   w.access,
		Visitors: visitors,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// run runs the Rounds until the test ends.
func (w *world) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(w.withLog(t.Context()))
	var running sync.WaitGroup
	running.Go(func() { w.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if n := w.ceph.Open() + w.other.Open(); n != 0 {
			t.Errorf("%d connections and pools were not closed", n)
		}
	})
}

// pass lets time pass in the test's bubble.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) putKey(t *testing.T, name string, key rbd.Key) {
	t.Helper()
	s := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name},
		Type:       access.TypeRBD,
		Data:       map[string][]byte{access.KeyEntry: []byte(key.Reveal())},
	}
	w.dropKey(t, name)
	if _, err := w.client.CoreV1().Secrets(s.Namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) dropKey(t *testing.T, name string) {
	t.Helper()
	// It may be missing.
	_ = w.client.CoreV1().Secrets("kube-system").Delete(t.Context(), name, metav1.DeleteOptions{})
}

// putClass makes a class that names the pool by the first monitor.
func (w *world) putClass(t *testing.T, name string, change func(*storagev1.StorageClass)) {
	t.Helper()
	class := &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: name},
		Provisioner: testName,
		Parameters: map[string]string{
			"monitors": "10.0.0.1:6789", "adminSecretName": "admin", "adminSecretNamespace": "kube-system",
			"userSecretName": "user", "userId": "kube",
		},
	}
	change(class)
	if err := w.classes.Update(class); err != nil {
		t.Fatal(err)
	}
}

func asItIs(*storagev1.StorageClass) {}

// with changes a class's parameters.
func with(key, value string) func(*storagev1.StorageClass) {
	return func(c *storagev1.StorageClass) { c.Parameters[key] = value }
}

// putVolume makes a volume of the pool, by the second monitor.
func (w *world) putVolume(t *testing.T, name string, change func(*corev1.PersistentVolume, *volume.Record)) {
	t.Helper()
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{
		Name: name, Annotations: map[string]string{volume.AnnProvisionedBy: testName},
	}}
	r := volume.Record{
		Identity: testIdentity, FSID: w.ceph.FSID(), Monitors: []string{"10.0.0.2:6789"}, Pool: testPool, Image: "image-of-" + name,
		User: "kube", Admin: "admin", AdminSecret: volume.SecretRef{Namespace: "kube-system", Name: "admin"},
	}
	change(pv, &r)
	r.Write(pv)
	if err := w.volumes.Update(pv); err != nil {
		t.Fatal(err)
	}
}

func (w *world) pool() volume.PoolID { return volume.PoolID{FSID: w.ceph.FSID(), Pool: testPool} }

// withLog returns a context with a logger that keeps every line in w.logs.
func (w *world) withLog(ctx context.Context) context.Context {
	return klog.NewContext(ctx, funcr.New(func(_, line string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.logs = append(w.logs, line)
	}, funcr.Options{Verbosity: 10}))
}

// checkFaults checks how often the log says that a pool could not be visited.
func (w *world) checkFaults(t *testing.T, want int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	log := strings.Join(w.logs, "\n")
	if got := strings.Count(log, "A pool could not be visited, will retry"); got != want {
		t.Errorf("the log has %d faults, want %d:\n%s", got, want, log)
	}
}

// FakeConnector lets a test exchange its Connector while no visit runs.
type FakeConnector struct{ rbd.Connector }

// FakeVisitor records when it was called for which pool.
type FakeVisitor struct {
	// visit is what a visit does and returns; nil for nothing.
	visit func(ctx context.Context, pool *access.Pool, n int) error

	mu     sync.Mutex // guards what follows
	start  time.Time
	visits []string
	times  []time.Duration
}

func newVisitor(visit func(ctx context.Context, pool *access.Pool, n int) error) *FakeVisitor {
	return &FakeVisitor{visit: visit, start: time.Now()}
}

// Visit implements pools.Visitor.
func (v *FakeVisitor) Visit(ctx context.Context, pool *access.Pool) error {
	v.mu.Lock()
	n := len(v.visits)
	v.visits = append(v.visits, fmt.Sprintf("%s of %s", pool.ID.Pool, pool.ID.FSID))
	v.times = append(v.times, time.Since(v.start))
	v.mu.Unlock()
	if v.visit == nil {
		return nil
	}
	return v.visit(ctx, pool, n)
}

// check checks which pools were visited, and forgets these visits.
func (v *FakeVisitor) check(t *testing.T, want ...volume.PoolID) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	var texts []string
	for _, id := range want {
		texts = append(texts, fmt.Sprintf("%s of %s", id.Pool, id.FSID))
	}
	slices.Sort(texts)
	slices.Sort(v.visits)
	checkSame(t, "the visits", texts, v.visits)
	v.visits, v.times = nil, nil
}

// checkTimes checks when the visits began, counted from when the visitor was made.
func (v *FakeVisitor) checkTimes(t *testing.T, want ...time.Duration) {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	checkSame(t, "the times", want, v.times)
}

func checkSame[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}
