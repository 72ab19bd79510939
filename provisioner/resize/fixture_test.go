// SPDX-License-Identifier: Apache-2.0

package resize

import (
	"context"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/ownership"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	testName     = "ceph.com/rbd"
	testIdentity = "here"
	testCluster  = "cluster-1"
	testPool     = "rbd"
	testImage    = "kubernetes-dynamic-pvc-1234"
	testMonitor  = "10.0.0.1:6789"
	gib          = 1 << 30
)

// fixture is a Loop with the Kubernetes and the Ceph cluster around it, in which a
// claim has a volume of 1 GiB.
type fixture struct {
	*Loop
	t       *testing.T
	ceph    *rbdtest.Cluster
	client  *fake.Clientset
	factory informers.SharedInformerFactory
	pv      *corev1.PersistentVolume
	guard   *lease.Guard
	// leading is what guard asks.
	leading func() bool

	mu      sync.Mutex // guards the fields below
	results []error
	sizes   []int64 // of images that were grown
}

// newFixture makes the world, after change has changed the claim and the volume.
func newFixture(t *testing.T, change func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)) *fixture {
	t.Helper()
	f := &fixture{t: t, ceph: rbdtest.NewCluster(testMonitor), leading: func() bool { return true }}
	f.ceph.AddPool(testPool)
	admin := f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true})
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "admin"},
		Data:       map[string][]byte{access.KeyEntry: []byte(admin.Key.Reveal())},
	}
	f.make(testImage, gib, map[string]string{volume.MetaVolume: "pvc-1234", volume.MetaIdentity: testIdentity, volume.MetaCluster: testCluster})
	class := &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "class"},
		Provisioner: testName,
		Parameters: map[string]string{
			"monitors": testMonitor, "adminSecretName": "admin", "adminSecretNamespace": "kube-system", "userSecretName": "user",
		},
	}
	claim, pv := claimAndVolume(f.ceph.FSID())
	if change != nil {
		change(claim, pv)
	}
	f.pv = pv
	f.guard = lease.New(func() bool { return f.leading() })
	f.client = fake.NewClientset([]runtime.Object{secret, class, claim, pv}...)
	f.factory = informers.NewSharedInformerFactory(f.client, 0)
	open, err := access.New(access.Config{Secrets: f.client.CoreV1(), Connector: rbdtest.NewConnector(f.ceph), Lease: f.guard})
	if err != nil {
		t.Fatal(err)
	}
	f.Loop, err = New(Config{
		Keeper: ownership.Keeper{Identity: testIdentity, Cluster: testCluster},
		Volumes: access.Volumes{
			Access: open, Classes: f.factory.Storage().V1().StorageClasses().Lister(), Provisioner: testName,
		},
		Client:       f.client,
		Factory:      f.factory,
		ResyncPeriod: time.Hour,
		Workers:      2,
		BackoffStart: time.Millisecond,
		BackoffCap:   10 * time.Millisecond,
		Lease:        f.guard,
		Resized: func(err error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.results = append(f.results, err)
		},
		Sized: func(_ runtime.Object, size int64) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.sizes = append(f.sizes, size)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	f.factory.Core().V1().PersistentVolumes().Informer()
	f.factory.Core().V1().PersistentVolumeClaims().Informer()
	f.factory.StartWithContext(t.Context())
	for kind, synced := range f.factory.WaitForCacheSync(t.Context().Done()) {
		if !synced {
			t.Fatalf("the cache of %v was not filled", kind)
		}
	}
	return f
}

func storage(size string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
}

func claimAndVolume(fsid string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	mode := corev1.PersistentVolumeBlock
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "data", UID: "1234"},
		Spec: corev1.PersistentVolumeClaimSpec{
			VolumeName: "pvc-1234",
			VolumeMode: &mode,
			Resources:  corev1.VolumeResourceRequirements{Requests: storage("1Gi")},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: storage("1Gi")},
	}
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-1234", Annotations: map[string]string{volume.AnnProvisionedBy: testName}},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: "class",
			VolumeMode:       &mode,
			Capacity:         storage("1Gi"),
			ClaimRef:         &corev1.ObjectReference{Namespace: "apps", Name: "data", UID: "1234"},
		},
	}
	volume.Record{
		Identity: testIdentity, FSID: fsid, Monitors: []string{testMonitor}, Pool: testPool, Image: testImage,
		Admin: "admin", AdminSecret: volume.SecretRef{Namespace: "kube-system", Name: "admin"},
	}.Write(pv)
	return claim, pv
}

// open returns a pool as another client has it.
func (f *fixture) open() rbd.Pool {
	f.t.Helper()
	cluster, err := f.ceph.Connect(f.t.Context(), f.ceph.AddUser("somebody", rbdtest.Caps{AllPools: true}))
	if err != nil {
		f.t.Fatal(err)
	}
	defer cluster.Close()
	pool, err := cluster.OpenPool(f.t.Context(), testPool)
	if err != nil {
		f.t.Fatal(err)
	}
	return pool
}

// make makes an image behind the Loop's back.
func (f *fixture) make(name string, size uint64, metadata map[string]string) {
	f.t.Helper()
	pool := f.open()
	defer pool.Close()
	if err := pool.CreateImage(f.t.Context(), name, rbd.ImageSpec{SizeBytes: size}); err != nil {
		f.t.Fatal(err)
	}
	f.mark(name, metadata)
}

func (f *fixture) mark(name string, metadata map[string]string) {
	f.t.Helper()
	pool := f.open()
	defer pool.Close()
	if err := pool.SetMetadata(f.t.Context(), name, metadata); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) removeImage() {
	f.t.Helper()
	pool := f.open()
	defer pool.Close()
	if err := pool.RemoveImage(f.t.Context(), testImage); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) grow(size uint64) {
	f.t.Helper()
	pool := f.open()
	defer pool.Close()
	if err := pool.GrowImage(f.t.Context(), testImage, size); err != nil {
		f.t.Fatal(err)
	}
}

// size is that of the volume's image; 0 when it is not there.
func (f *fixture) size() uint64 {
	image, _ := f.ceph.Image(testPool, testImage)
	return image.SizeBytes
}

// resizer is what external-resizer is given.
func (f *fixture) resizer() *resizer {
	return &resizer{f.Loop, func() context.Context { return f.t.Context() }}
}

// checkClosed checks that nothing stays open.
func (f *fixture) checkClosed() {
	f.t.Helper()
	if n := f.ceph.Open(); n != 0 {
		f.t.Errorf("%d connections and pools were not closed", n)
	}
}
