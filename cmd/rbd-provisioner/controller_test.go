// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2/ktesting"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// FakeQueueMetrics counts what is added to work queues, by their names.
type FakeQueueMetrics struct {
	// MetricsProvider makes no metric but that one.
	workqueue.MetricsProvider

	mu    sync.Mutex // guards added
	added map[string]int
}

// theQueueMetrics is the one that there can be in a process: client-go takes the
// first provider, and no other after it.
var theQueueMetrics = sync.OnceValue(func() *FakeQueueMetrics {
	f := &FakeQueueMetrics{added: map[string]int{}}
	workqueue.SetProvider(f)
	return f
})

// take returns what was added to each queue since it was called last.
func (f *FakeQueueMetrics) take() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	added := maps.Clone(f.added)
	clear(f.added)
	return added
}

// FakeMetric counts nothing, unless inc does.
type FakeMetric struct{ inc func() }

func (m FakeMetric) Inc()          { m.inc() }
func (FakeMetric) Dec()            {}
func (FakeMetric) Set(float64)     {}
func (FakeMetric) Observe(float64) {}

var noMetric = FakeMetric{func() {}}

func (f *FakeQueueMetrics) NewAddsMetric(name string) workqueue.CounterMetric {
	return FakeMetric{func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.added[name]++
	}}
}

func (*FakeQueueMetrics) NewDepthMetric(string) workqueue.GaugeMetric            { return noMetric }
func (*FakeQueueMetrics) NewLatencyMetric(string) workqueue.HistogramMetric      { return noMetric }
func (*FakeQueueMetrics) NewWorkDurationMetric(string) workqueue.HistogramMetric { return noMetric }
func (*FakeQueueMetrics) NewRetriesMetric(string) workqueue.CounterMetric        { return noMetric }
func (*FakeQueueMetrics) NewUnfinishedWorkSecondsMetric(string) workqueue.SettableGaugeMetric {
	return noMetric
}
func (*FakeQueueMetrics) NewLongestRunningProcessorSecondsMetric(string) workqueue.SettableGaugeMetric {
	return noMetric
}

// standby is a replica that does not lead yet, with its caches filled, and an API
// server that tells of claims and volumes when it is asked to.
type standby struct {
	*controller
	client          *fake.Clientset
	informers       informers.SharedInformerFactory
	claims, volumes *watch.FakeWatcher
}

func newStandby(ctx context.Context, t *testing.T) *standby {
	t.Helper()
	ceph := rbdtest.NewCluster("10.0.0.1:6789")
	ceph.AddPool("rbd")
	key := ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key
	client := fake.NewClientset(
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "admin"},
			Type:       access.TypeRBD,
			Data:       map[string][]byte{access.KeyEntry: []byte(key.Reveal())},
		},
		&storagev1.StorageClass{
			ObjectMeta:  metav1.ObjectMeta{Name: "fast"},
			Provisioner: "ceph.com/rbd",
			Parameters: map[string]string{
				"monitors": "10.0.0.1:6789", "adminSecretName": "admin", "adminSecretNamespace": "kube-system",
				"userSecretName": "admin", "userSecretNamespace": "kube-system",
			},
		})
	s := &standby{client: client, informers: newInformers(client), claims: watch.NewFake(), volumes: watch.NewFake()}
	client.PrependWatchReactor("persistentvolumeclaims", clienttesting.DefaultWatchReactor(s.claims, nil))
	client.PrependWatchReactor("persistentvolumes", clienttesting.DefaultWatchReactor(s.volumes, nil))
	open, err := access.New(access.Config{Secrets: client.CoreV1(), Connector: rbdtest.NewConnector(ceph)})
	if err != nil {
		t.Fatal(err)
	}
	s.controller, err = newController(ctx, controllerConfig{
		options:    parse(t, nil, "-leader-election=false", "-expansion=false"),
		clusterUID: "cluster-1",
		client:     client,
		informers:  s.informers,
		access:     open,
		nodes:      newNodes(client),
		guard:      lease.New(nil),
		registry:   prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	s.informers.StartWithContext(ctx)
	if err := s.informers.WaitForCacheSyncWithContext(ctx).AsError(); err != nil {
		t.Fatal(err)
	}
	return s
}

func claimOf(name string) *corev1.PersistentVolumeClaim {
	class := "fast"
	claim := fullClaim(name, "")
	claim.Annotations = map[string]string{"volume.kubernetes.io/storage-provisioner": "ceph.com/rbd"}
	claim.Spec.StorageClassName, claim.Spec.AccessModes = &class, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	claim.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
	claim.UID = types.UID(name)
	return claim
}

func volumeOf(name string) *corev1.PersistentVolume {
	pv := fullVolume(name)
	pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "other"}}
	return pv
}

// comeAndGo has n claims and n volumes come and go, and returns when the caches have
// told of all that.
func (s *standby) comeAndGo(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	var gone atomic.Int64
	for _, informer := range []cache.SharedInformer{
		s.informers.Core().V1().PersistentVolumeClaims().Informer(), s.informers.Core().V1().PersistentVolumes().Informer(),
	} {
		handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{DeleteFunc: func(any) { gone.Add(1) }})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = informer.RemoveEventHandler(handler) }()
	}
	for i := range n {
		claim, pv := fmt.Sprintf("claim-%d", i), fmt.Sprintf("volume-%d", i)
		s.claims.Add(claimOf(claim))
		s.volumes.Add(volumeOf(pv))
		s.claims.Delete(claimOf(claim))
		s.volumes.Delete(volumeOf(pv))
	}
	until(ctx, t, "all are gone", func(context.Context) (bool, error) { return gone.Load() == int64(2*n), nil })
}

// claim makes a claim.
func (s *standby) claim(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	claim := claimOf(name)
	if _, err := s.client.CoreV1().PersistentVolumeClaims(claim.Namespace).Create(ctx, claim, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.claims.Add(claim)
}

// served waits for the volume of a claim.
func (s *standby) served(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	until(ctx, t, name+" is served", func(ctx context.Context) (bool, error) {
		_, err := s.client.CoreV1().PersistentVolumes().Get(ctx, "pvc-"+name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
}

func until(ctx context.Context, t *testing.T, what string, holds wait.ConditionWithContextFunc) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, time.Minute, true, holds); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// readScheme reads client-go's Scheme until ctx ends, as each answer of the API server has
// it read. A write to it meanwhile, the race detector reports, and a process may end of it.
func readScheme(ctx context.Context, t *testing.T) (wait func()) {
	var reading sync.WaitGroup
	reading.Go(func() {
		for ctx.Err() == nil {
			if _, _, err := scheme.Scheme.ObjectKinds(&corev1.Secret{}); err != nil {
				t.Error(err)
				return
			}
			runtime.Gosched()
		}
	})
	return reading.Wait
}

// TestStandbyQueuesNothing has a thousand claims and volumes come and go while a
// replica waits for the lease. It must not remember them; what is there when it leads,
// and what comes then, it works on.
func TestStandbyQueuesNothing(t *testing.T) {
	queues := theQueueMetrics()
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	s := newStandby(ctx, t)
	defer s.informers.Shutdown()
	defer cancel()
	queues.take() // those of tests before

	s.comeAndGo(ctx, t, 1000)
	s.claim(ctx, t, "waiting")
	s.volumes.Add(volumeOf("there"))
	if diff := cmp.Diff(map[string]int{}, queues.take()); diff != "" {
		t.Errorf("a replica that does not lead queued (-want +got):\n%s", diff)
	}

	working, stop := context.WithCancel(ctx)
	defer readScheme(working, t)()
	ran := make(chan error, 1)
	go func() { ran <- s.run(working) }()
	s.served(ctx, t, "waiting")
	s.claim(ctx, t, "new")
	s.served(ctx, t, "new")
	stop()
	if err := <-ran; err != nil {
		t.Errorf("run: %v", err)
	}
	queued := queues.take()
	// The API server does not know this volume, so it is tried again each second.
	if n := queued["volumes"]; n > 1 && n < 100 {
		queued["volumes"] = 1
	}
	if diff := cmp.Diff(map[string]int{"claims": 2, "volumes": 1}, queued); diff != "" {
		t.Errorf("the leader queued (-want +got):\n%s", diff)
	}
}
