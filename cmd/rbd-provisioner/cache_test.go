// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2/ktesting"
	"k8s.io/utils/ptr"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

func fullMeta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, UID: types.UID("uid-of-" + name), ResourceVersion: "7",
		Labels: map[string]string{"team": "blue"},
		Annotations: map[string]string{
			corev1.LastAppliedConfigAnnotation:  "all of it",
			"pv.kubernetes.io/provisioned-by":   "ceph.com/rbd",
			"example.com/what-others-put-there": "yes",
		},
		Finalizers:    []string{"kubernetes.io/pv-protection"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}},
	}
}

func fullVolume(name string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: fullMeta(name),
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			StorageClassName:              "rbd",
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			ClaimRef:                      &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1", Namespace: "default", Name: name},
			PersistentVolumeSource: corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
				CephMonitors: []string{"10.0.0.1:6789"}, RBDPool: "kube", RBDImage: name, RadosUser: "kube",
				SecretRef: &corev1.SecretReference{Namespace: "default", Name: "key"},
			}},
			NodeAffinity: &corev1.VolumeNodeAffinity{},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
	}
}

func fullClaim(name, volume string) *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: fullMeta(name),
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: ptr.To("rbd"), VolumeName: volume,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
		Status: corev1.PersistentVolumeClaimStatus{
			Phase:    corev1.ClaimBound,
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		},
	}
	claim.Namespace = "default"
	return claim
}

// fullCSIVolume has the source of our node plugin.
func fullCSIVolume(name string) *corev1.PersistentVolume {
	pv := fullVolume(name)
	volume.Record{
		CSI: true, Identity: "here", FSID: "f", Monitors: []string{"10.0.0.1"}, Pool: "kube", Image: name, User: "kube", FSType: "xfs",
		UserSecret: volume.SecretRef{Namespace: "default", Name: "key"}, MapOptions: "queue_depth=64",
	}.Write(pv)
	return pv
}

func trimmed[T any](t *testing.T, object T) T {
	t.Helper()
	got, err := trim(object)
	if err != nil {
		t.Fatal(err)
	}
	return got.(T)
}

// TestTrim checks what is cached of an object.
func TestTrim(t *testing.T) {
	bare := func(pv *corev1.PersistentVolume) {
		pv.ManagedFields, pv.Labels = nil, nil
		delete(pv.Annotations, corev1.LastAppliedConfigAnnotation)
	}
	ours := fullVolume("a")
	bare(ours)
	mounted := fullCSIVolume("a")
	bare(mounted)
	foreign := fullVolume("b")
	foreign.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "other"}}
	wantForeign := foreign.DeepCopy()
	bare(wantForeign)
	wantForeign.Spec.PersistentVolumeSource, wantForeign.Spec.NodeAffinity, wantForeign.Spec.Capacity = corev1.PersistentVolumeSource{}, nil, nil
	csi := fullVolume("c")
	csi.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
		Driver: "rbd.csi.ceph.com", VolumeHandle: "image", VolumeAttributes: map[string]string{"pool": "kube", "clusterID": "c"},
	}}
	wantCSI := csi.DeepCopy()
	bare(wantCSI)
	delete(wantCSI.Spec.CSI.VolumeAttributes, "clusterID")
	wantCSI.Spec.NodeAffinity, wantCSI.Spec.Capacity = nil, nil
	settled := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", UID: "uid-of-a", ResourceVersion: "7"},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "a"},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	smaller := fullClaim("a", "a")
	smaller.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("900Mi")
	deleted, wantDeleted := fullClaim("a", "a"), settled.DeepCopy()
	deleted.DeletionTimestamp = new(metav1.Now())
	wantDeleted.DeletionTimestamp = deleted.DeletionTimestamp
	waiting := fullClaim("c", "")
	waiting.ManagedFields = nil
	growing := fullClaim("a", "a")
	growing.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("2Gi")
	wantGrowing := growing.DeepCopy()
	wantGrowing.ManagedFields = nil
	binding := fullClaim("a", "a")
	binding.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
	wantBinding := binding.DeepCopy()
	wantBinding.ManagedFields = nil
	for _, test := range []struct {
		name      string
		full, got any
	}{
		{"a volume", ours, trimmed(t, fullVolume("a"))},
		{"one that is trimmed already", ours, trimmed(t, trimmed(t, fullVolume("a")))},
		{"a volume of our node plugin", mounted, trimmed(t, fullCSIVolume("a"))},
		{"one of another kind of storage", wantForeign, trimmed(t, foreign)},
		{"one of a CSI driver that names an image", wantCSI, trimmed(t, csi)},
		{"a claim", settled, trimmed(t, fullClaim("a", "a"))},
		{"a claim that is trimmed already", settled, trimmed(t, trimmed(t, fullClaim("a", "a")))},
		{"a claim whose volume is larger than it asked for", settled, trimmed(t, smaller)},
		{"a claim that is being deleted", wantDeleted, trimmed(t, deleted)},
		{"a claim that waits", waiting, trimmed(t, fullClaim("c", ""))},
		{"a claim that waits for growth", wantGrowing, trimmed(t, growing)},
		{"a claim that is not bound yet", wantBinding, trimmed(t, binding)},
	} {
		if diff := cmp.Diff(test.full, test.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

// TestTrimSharesNoMaps changes whatever can be changed of one cached object.
func TestTrimSharesNoMaps(t *testing.T) {
	for name, full := range map[string]func(string) *corev1.PersistentVolume{"in-tree": fullVolume, "CSI": fullCSIVolume} {
		pv, other := trimmed(t, full("a")), trimmed(t, full("a"))
		want := other.DeepCopy()
		pv.Annotations["pv.kubernetes.io/provisioned-by"] = "changed"
		pv.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse("2Gi")
		pv.Finalizers[0], pv.Spec.ClaimRef.Namespace = "changed", "changed"
		if source := pv.Spec.RBD; source != nil {
			source.CephMonitors[0], source.SecretRef.Name = "changed", "changed"
		}
		if source := pv.Spec.CSI; source != nil {
			source.VolumeAttributes["pool"], source.NodeStageSecretRef.Name = "changed", "changed"
		}
		if diff := cmp.Diff(want, other); diff != "" {
			t.Errorf("%s: another object changed (-want +got):\n%s", name, diff)
		}
	}
}

// FakePages answers lists of volumes in pages, as the API server does unless it
// is content with any version.
type FakePages struct {
	volumes []corev1.PersistentVolume
	pages   atomic.Int32
}

func (f *FakePages) list(action clienttesting.Action) (bool, runtime.Object, error) {
	options := action.(clienttesting.ListActionImpl).GetListOptions()
	begin, _ := strconv.Atoi(options.Continue) // the first has none
	end := len(f.volumes)
	var next string
	if options.Limit > 0 && options.ResourceVersion != "0" && begin+int(options.Limit) < end {
		end = begin + int(options.Limit)
		next = strconv.Itoa(end)
	}
	f.pages.Add(1)
	list := &corev1.PersistentVolumeList{ListMeta: metav1.ListMeta{ResourceVersion: "9", Continue: next}}
	for _, pv := range f.volumes[begin:end] {
		list.Items = append(list.Items, *pv.DeepCopy())
	}
	return true, list, nil
}

func TestCachesAreFilledByPages(t *testing.T) {
	pages := &FakePages{}
	for i := range 1200 {
		pages.volumes = append(pages.volumes, *fullVolume(fmt.Sprintf("volume-%d", i)))
	}
	client := fake.NewClientset()
	client.PrependReactor("list", "persistentvolumes", pages.list)
	ctx, cancel := context.WithCancel(t.Context())
	factory := newInformers(client)
	defer factory.Shutdown()
	defer cancel()
	volumes := factory.Core().V1().PersistentVolumes().Informer()
	factory.StartWithContext(ctx)
	if err := factory.WaitForCacheSyncWithContext(ctx).AsError(); err != nil {
		t.Fatal(err)
	}
	if n := len(volumes.GetStore().List()); n != len(pages.volumes) {
		t.Errorf("%d volumes are cached, want %d", n, len(pages.volumes))
	}
	for _, object := range volumes.GetStore().List() {
		if object.(*corev1.PersistentVolume).ManagedFields != nil {
			t.Fatal("a volume was cached as it came")
		}
	}
	if n := pages.pages.Load(); n != 3 {
		t.Errorf("they came in %d pages, want 3", n)
	}
}

// FakeStorage makes nothing.
type FakeStorage struct{ libcontroller.Provisioner }

// TestNothingTrimmedIsLost lets the library write to a volume that it knows
// trimmed.
func TestNothingTrimmedIsLost(t *testing.T) {
	const finalizer = "external-provisioner.volume.kubernetes.io/finalizer"
	full := fullVolume("a")
	client := fake.NewClientset(full.DeepCopy())
	logger, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	factory := newInformers(client)
	loop := libcontroller.NewProvisionController(logger, client, "ceph.com/rbd", FakeStorage{},
		libcontroller.LeaderElection(false),
		libcontroller.ClaimsInformer(factory.Core().V1().PersistentVolumeClaims().Informer()),
		libcontroller.VolumesInformer(factory.Core().V1().PersistentVolumes().Informer()),
		libcontroller.ClassesInformer(factory.Storage().V1().StorageClasses().Informer()),
		libcontroller.NodesLister(anyNode{}),
		libcontroller.AddFinalizer(true),
	)
	factory.StartWithContext(ctx)
	stopped := make(chan struct{})
	go func() { defer close(stopped); loop.Run(ctx) }()
	defer func() { cancel(); factory.Shutdown(); <-stopped }()

	var live *corev1.PersistentVolume
	if err := wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		var err error
		live, err = client.CoreV1().PersistentVolumes().Get(ctx, "a", metav1.GetOptions{})
		return err == nil && slices.Contains(live.Finalizers, finalizer), err
	}); err != nil {
		t.Fatal(err)
	}
	full.Finalizers = append(full.Finalizers, finalizer)
	live.ManagedFields, full.ManagedFields = nil, nil // the server's own
	if diff := cmp.Diff(full, live); diff != "" {
		t.Errorf("the volume changed (-want +got):\n%s", diff)
	}
}

// stored makes the volume and the claim of a number as they come from the API server:
// no text in them is shared with another object.
func stored(b *testing.B, n int) (*corev1.PersistentVolume, *corev1.PersistentVolumeClaim) {
	b.Helper()
	uid := fmt.Sprintf("5f6a2f0e-8f3b-4c1d-9a77-%012d", n)
	pv, claim := fullVolume("pvc-"+uid), fullClaim(fmt.Sprintf("data-web-%d", n), "pvc-"+uid)
	for _, object := range []*metav1.ObjectMeta{&pv.ObjectMeta, &claim.ObjectMeta} {
		object.Labels = nil
		object.ManagedFields = []metav1.ManagedFieldsEntry{{
			Manager: "rbd-provisioner", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", FieldsType: "FieldsV1",
			FieldsV1: metav1.NewFieldsV1(strings.Repeat("f", 800)),
		}}
	}
	claim.Labels = map[string]string{"app": "web"} // of its StatefulSet
	pv.UID, claim.UID = types.UID("1"+uid[1:]), types.UID(uid)
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	pv.Spec.AccessModes, claim.Spec.AccessModes, claim.Status.AccessModes = modes, modes, modes
	pv.Spec.VolumeMode, claim.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeFilesystem), ptr.To(corev1.PersistentVolumeFilesystem)
	pv.Spec.ClaimRef.Name, pv.Spec.ClaimRef.UID, pv.Spec.NodeAffinity = claim.Name, claim.UID, nil
	pv.Spec.RBD.RBDImage = "kubernetes-dynamic-pvc-" + uid
	pv.Finalizers = []string{"external-provisioner.volume.kubernetes.io/finalizer", "kubernetes.io/pv-protection"}
	pv.Annotations = map[string]string{volume.AnnProvisionedBy: "ceph.com/rbd"}
	volume.Record{
		Identity: "ceph.com/rbd", Cluster: "0d0b0f9a-7b8f-4c57-9c4e-2d2f6a3c1b11", FSID: "c1d1f1de-9a55-4f0c-a2a7-8c3f0b7f1a22",
		Monitors: []string{"10.0.0.1:6789", "10.0.0.2:6789", "10.0.0.3:6789"}, Pool: "kube", Image: pv.Spec.RBD.RBDImage,
		User: "kube", UserSecret: volume.SecretRef{Namespace: "kube-system", Name: "ceph-user"},
		Admin: "admin", AdminSecret: volume.SecretRef{Namespace: "kube-system", Name: "ceph-admin"},
	}.Write(pv)
	claim.Finalizers = []string{"kubernetes.io/pvc-protection"}
	claim.Annotations = map[string]string{
		"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes",
		"volume.beta.kubernetes.io/storage-provisioner": "ceph.com/rbd", "volume.kubernetes.io/storage-provisioner": "ceph.com/rbd",
	}
	volumeBytes, err := pv.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	claimBytes, err := claim.Marshal()
	if err != nil {
		b.Fatal(err)
	}
	pv, claim = new(corev1.PersistentVolume), new(corev1.PersistentVolumeClaim)
	if err := errors.Join(pv.Unmarshal(volumeBytes), claim.Unmarshal(claimBytes)); err != nil {
		b.Fatal(err)
	}
	return pv, claim
}

// heap is what is in use after a collection.
func heap() uint64 {
	var stats goruntime.MemStats
	goruntime.GC()
	goruntime.GC() // what unique has let go of
	goruntime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// BenchmarkCached tells how many bytes of the heap a volume of ours takes with its claim,
// in caches with the indexes that the program has.
func BenchmarkCached(b *testing.B) {
	const many = 10000
	for b.Loop() {
		before := heap()
		volumes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, index.Indexers())
		claims := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{
			cache.NamespaceIndex: cache.MetaNamespaceIndexFunc,
			"uid": func(obj any) ([]string, error) {
				return []string{string(obj.(*corev1.PersistentVolumeClaim).UID)}, nil
			},
		})
		for i := range many {
			pv, claim := stored(b, i)
			for _, cached := range []struct {
				object any
				in     cache.Indexer
			}{{pv, volumes}, {claim, claims}} {
				object, err := trim(cached.object)
				if err != nil {
					b.Fatal(err)
				}
				if err := cached.in.Add(object); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(heap()-before)/many, "B/volume")
		goruntime.KeepAlive(volumes)
		goruntime.KeepAlive(claims)
	}
}
