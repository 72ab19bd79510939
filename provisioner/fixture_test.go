// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	testIdentity = "here"
	testCluster  = "cluster-1"
	testPool     = "rbd"
	testImage    = "kubernetes-dynamic-pvc-1234" // of the claim that options makes
	deadMonitor  = "10.0.0.9:6789"
	otherMonitor = "10.0.1.1:6789"
)

// testMarks is the metadata of the image for the claim that options makes.
func testMarks() map[string]string {
	return map[string]string{
		volume.MetaClaim: "data", volume.MetaClaimNamespace: "apps", volume.MetaVolume: "pvc-1234", volume.MetaIdentity: testIdentity,
		volume.MetaCluster: testCluster,
	}
}

// fixture is a Provisioner with its Kubernetes and Ceph clusters.
type fixture struct {
	*process
	options controller.ProvisionOptions

	// ceph has the monitors 10.0.0.1 and 10.0.0.2, other has otherMonitor.
	ceph, other *rbdtest.Cluster
	connector   *FakeConnector
	client      *fake.Clientset
	// claims, classes and volumes are the caches.
	claims, classes, volumes cache.Indexer
	events                   *record.FakeRecorder
	names                    FakeResolver
	nodes                    *FakeNodes

	// The next process, which restart makes, uses the fields below.
	clusterUID, identity string
	usePVName            bool
	maxCloneDepth        int
	// leaseLost says that the process does not lead any more.
	leaseLost atomic.Bool
	// flattened counts clones that were flattened.
	flattened int
	// secrets are texts that no error, event or log line may show.
	secrets []string

	mu   sync.Mutex // guards logs
	logs []string
}

// newFixture returns a fixture in which Provision succeeds for the claim of options.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		options: options(),
		ceph:    rbdtest.NewCluster("10.0.0.1:6789", "10.0.0.2:6789", "v2:10.0.0.1:3300"),
		other:   rbdtest.NewCluster(otherMonitor),
		client:  fake.NewClientset(),
		claims:  cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
		classes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
		volumes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, index.Indexers()),
		events:  record.NewFakeRecorder(100),
		names:   FakeResolver{},
		nodes:   &FakeNodes{FakeAnswers: FakeAnswers{inTree: true}},

		clusterUID: testCluster,
		identity:   testIdentity,

		maxCloneDepth: 4,
	}
	f.connector = &FakeConnector{Connector: rbdtest.NewConnector(f.ceph, f.other)}
	everything := rbdtest.Caps{AllPools: true}
	f.ceph.AddPool(testPool)
	f.other.AddPool(testPool)
	f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", everything).Key)
	f.putKey(t, "apps", "user", f.ceph.AddUser("kube", everything).Key)
	f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
	f.putClass(t, func(*storagev1.StorageClass) {})
	f.restart(t)
	return f
}

// putSecret stores a secret, or replaces it.
func (f *fixture) putSecret(t *testing.T, namespace, name string, kind corev1.SecretType, data map[string]string) {
	t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Type: kind, Data: map[string][]byte{}}
	for entry, value := range data {
		s.Data[entry] = []byte(value)
		f.secrets = append(f.secrets, value)
	}
	// It need not exist.
	_ = f.client.CoreV1().Secrets(namespace).Delete(t.Context(), name, metav1.DeleteOptions{})
	if _, err := f.client.CoreV1().Secrets(namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) putKey(t *testing.T, namespace, name string, key rbd.Key) {
	t.Helper()
	f.putSecret(t, namespace, name, access.TypeRBD, map[string]string{access.KeyEntry: key.Reveal()})
}

func (f *fixture) dropSecret(t *testing.T, namespace, name string) {
	t.Helper()
	if err := f.client.CoreV1().Secrets(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// putLive makes the claim in the API server and in the cache differ from the library's
// copy.
func (f *fixture) putLive(t *testing.T, change func(*corev1.PersistentVolumeClaim)) {
	t.Helper()
	f.dropLive(t)
	live := f.options.PVC.DeepCopy()
	change(live)
	if _, err := f.client.CoreV1().PersistentVolumeClaims(live.Namespace).Create(t.Context(), live, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := f.claims.Update(live); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) dropLive(t *testing.T) {
	t.Helper()
	// It need not exist.
	_ = f.client.CoreV1().PersistentVolumeClaims(f.options.PVC.Namespace).Delete(t.Context(), f.options.PVC.Name, metav1.DeleteOptions{})
	if err := f.claims.Delete(f.options.PVC); err != nil {
		t.Fatal(err)
	}
}

// putClass changes the class, both in the lister and for Provision.
func (f *fixture) putClass(t *testing.T, change func(*storagev1.StorageClass)) {
	t.Helper()
	class := f.options.StorageClass.DeepCopy()
	change(class)
	f.options.StorageClass = class
	if err := f.classes.Update(class); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) putParameter(t *testing.T, key, value string) {
	t.Helper()
	f.putClass(t, func(c *storagev1.StorageClass) { c.Parameters[key] = value })
}

func (f *fixture) dropClass(t *testing.T) {
	t.Helper()
	if err := f.classes.Delete(f.options.StorageClass); err != nil {
		t.Fatal(err)
	}
}

// seed makes an image without the Provisioner.
func (f *fixture) seed(t *testing.T, c *rbdtest.Cluster, name string, spec rbd.ImageSpec, metadata map[string]string) {
	t.Helper()
	cluster, err := c.Connect(t.Context(), c.AddUser("somebody", rbdtest.Caps{AllPools: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	pool, err := cluster.OpenPool(t.Context(), testPool)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := pool.CreateImage(t.Context(), name, spec); err != nil {
		t.Fatal(err)
	}
	if err := pool.SetMetadata(t.Context(), name, metadata); err != nil {
		t.Fatal(err)
	}
}

// provision calls Provision and checks what must hold whatever the result is.
func (f *fixture) provision(ctx context.Context, t *testing.T) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	t.Helper()
	claim, class := f.options.PVC.DeepCopy(), f.options.StorageClass.DeepCopy()
	pv, state, err := f.Provision(f.withLog(ctx), f.options)
	checkSame(t, "the claim that was given in", claim, f.options.PVC)
	checkSame(t, "the class that was given in", class, f.options.StorageClass)
	f.checkAfter(t, err)
	if (pv == nil) == (err == nil) {
		t.Errorf("got the volume %v and the error %v", pv, err)
	}
	if err == nil && state != controller.ProvisioningFinished {
		t.Errorf("got a volume in state %s", state)
	}
	if _, ignored := err.(*controller.IgnoredError); err != nil && !ignored && //nolint:errorlint // as the library looks for it
		(state == controller.ProvisioningFinished || state == controller.ProvisioningReschedule) {
		t.Errorf("the state %s makes the library forget the claim: %v", state, err)
	}
	return pv, state, err
}

// mustProvision is provision where it must succeed.
func (f *fixture) mustProvision(t *testing.T) *corev1.PersistentVolume {
	t.Helper()
	pv, _, err := f.provision(t.Context(), t)
	if err != nil {
		t.Fatalf("provision: %v", err)
	}
	return pv
}

// checkAfter checks that nothing stays open, and that no secret shows.
func (f *fixture) checkAfter(t *testing.T, err error) {
	t.Helper()
	if n := f.ceph.Open() + f.other.Open(); n != 0 {
		t.Errorf("%d connections and pools were not closed", n)
	}
	f.checkSecrets(t, "log", strings.Join(f.logged(), "\n"))
	if err == nil {
		return
	}
	f.checkSecrets(t, "error", err.Error())
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error has several lines: %v", err)
	}
}

func (f *fixture) checkSecrets(t *testing.T, where, text string) {
	t.Helper()
	for _, secret := range f.secrets {
		if secret = strings.TrimSpace(secret); secret != "" && strings.Contains(text, secret) {
			t.Errorf("the %s shows a secret: %s", where, text)
		}
	}
}

// withLog returns a context whose log, with all details, logged returns.
func (f *fixture) withLog(ctx context.Context) context.Context {
	return klog.NewContext(ctx, funcr.New(func(_, line string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.logs = append(f.logs, line)
	}, funcr.Options{Verbosity: 10}))
}

func (f *fixture) logged() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.logs)
}

// checkMade checks that the claim's image is as it should be, and that there is nothing
// else.
func (f *fixture) checkMade(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
	checkSame(t, "the remains", nil, f.ceph.Remains(testPool))
	image, _ := f.ceph.Image(testPool, testImage)
	image.ID = "" // any will do
	checkSame(t, "the image", rbd.Image{SizeBytes: 1 << 30, Features: []string{rbd.FeatureLayering}, Metadata: testMarks()}, image)
}

// checkNothing checks that there are no images and no leftovers.
func (f *fixture) checkNothing(t *testing.T) {
	t.Helper()
	checkSame(t, "the images", nil, f.ceph.Images(testPool))
	checkSame(t, "the remains", nil, f.ceph.Remains(testPool))
	checkSame(t, "the trash", nil, f.ceph.Trash(testPool))
}

// sent returns the events since the last call.
func (f *fixture) sent(t *testing.T) []string {
	t.Helper()
	var sent []string
	for {
		select {
		case event := <-f.events.Events:
			f.checkSecrets(t, "event", event)
			sent = append(sent, event)
		default:
			return sent
		}
	}
}

func checkSame[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// checkIgnored checks that the library passes over err: it looks for the type with an
// assertion.
func checkIgnored(t *testing.T, err error) {
	t.Helper()
	if _, ok := err.(*controller.IgnoredError); !ok { //nolint:errorlint // as the library looks for it
		t.Errorf("got %T %v, want a bare IgnoredError", err, err)
	}
}

// FakeResolver knows the names that a test gives it.
type FakeResolver map[string][]netip.Addr

// LookupNetIP implements monitors.Resolver.
func (f FakeResolver) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if addrs := f[host]; len(addrs) > 0 {
		return addrs, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

// FakeConnector counts connections.
type FakeConnector struct {
	rbd.Connector
	connects atomic.Int32
}

// Connect implements rbd.Connector.
func (c *FakeConnector) Connect(ctx context.Context, creds rbd.Credentials) (rbd.Cluster, error) {
	c.connects.Add(1)
	return c.Connector.Connect(ctx, creds)
}

func addresses(texts ...string) []netip.Addr {
	addrs := make([]netip.Addr, len(texts))
	for i, text := range texts {
		addrs[i] = netip.MustParseAddr(text)
	}
	return addrs
}
