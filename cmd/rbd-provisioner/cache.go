// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"
	"unique"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"ceph.com/rbd-provisioner/provisioner/index"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// newInformers returns the factory of our caches. Their memory grows with what they
// hold of each volume and claim in the cluster, and with what the first list takes: so
// that list comes in pages, and each page is trimmed before the next one is read.
func newInformers(client kubernetes.Interface) informers.SharedInformerFactory {
	factory := informers.NewSharedInformerFactoryWithOptions(client, resyncPeriod, informers.WithTransform(trim))
	factory.InformerFor(&corev1.PersistentVolume{}, func(client kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		return newInformer(client, client.CoreV1().PersistentVolumes(), &corev1.PersistentVolume{}, resync, index.Indexers())
	})
	factory.InformerFor(&corev1.PersistentVolumeClaim{}, func(client kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		claims := client.CoreV1().PersistentVolumeClaims(metav1.NamespaceAll)
		byNamespace := cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
		return newInformer(client, claims, &corev1.PersistentVolumeClaim{}, resync, byNamespace)
	})
	return factory
}

// listWatcher is what client-go's typed clients are, whose lists are of type L.
type listWatcher[L runtime.Object] interface {
	List(ctx context.Context, options metav1.ListOptions) (L, error)
	Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

// newInformer makes what the factory would make, but trims the list page by page. It
// asks a server that can send the list as a stream for that.
func newInformer[L runtime.Object](
	client kubernetes.Interface, objects listWatcher[L], kind runtime.Object, resync time.Duration, indexers cache.Indexers,
) cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		WatchFuncWithContext: objects.Watch,
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			// The server answers "any version" from its cache, in one piece.
			if options.ResourceVersion == "0" {
				options.ResourceVersion = ""
			}
			page, err := objects.List(ctx, options)
			if err != nil {
				return nil, err
			}
			return page, meta.EachListItem(page, func(item runtime.Object) error {
				_, err := trim(item)
				return err
			})
		},
	}, client), kind, resync, indexers)
}

// trim is a cache.TransformFunc. It removes what this process never reads, and lets objects
// share texts that many have in common. They share no map, slice or pointer: whoever
// changed one object would change them all.
//
// Nothing is lost in the API: the library writes whole claims only while they wait for a
// volume. Otherwise all send patches, even if they make them of two copies of what is cached.
func trim(obj any) (any, error) {
	switch object := obj.(type) {
	case *corev1.PersistentVolume:
		volume.Trim(object)
		shareVolume(object)
	case *corev1.PersistentVolumeClaim:
		object.ManagedFields = nil
		if isSettled(object) {
			trimClaim(object)
		}
	case metav1.Object:
		object.SetManagedFields(nil)
	}
	// A tombstone needs no trimming.
	return obj, nil
}

// isSettled reports whether a claim waits neither for a volume nor for growth.
func isSettled(claim *corev1.PersistentVolumeClaim) bool {
	wanted, has := claim.Spec.Resources.Requests.Storage(), claim.Status.Capacity.Storage()
	return claim.Spec.VolumeName != "" && wanted.Cmp(*has) <= 0
}

// trimClaim leaves of a settled claim which one it is and what its volume is. Without both
// sizes, it still looks settled to external-resizer.
func trimClaim(claim *corev1.PersistentVolumeClaim) {
	*claim = corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: share(claim.Namespace), Name: claim.Name, UID: claim.UID,
			ResourceVersion: claim.ResourceVersion, DeletionTimestamp: claim.DeletionTimestamp,
		},
		Spec:   corev1.PersistentVolumeClaimSpec{VolumeName: claim.Spec.VolumeName},
		Status: corev1.PersistentVolumeClaimStatus{Phase: share(claim.Status.Phase)},
	}
}

func shareVolume(pv *corev1.PersistentVolume) {
	pv.Annotations = shareMap(pv.Annotations)
	shareAll(pv.Finalizers)
	pv.Spec.StorageClassName = share(pv.Spec.StorageClassName)
	pv.Spec.PersistentVolumeReclaimPolicy = share(pv.Spec.PersistentVolumeReclaimPolicy)
	pv.Status.Phase = share(pv.Status.Phase)
	if ref := pv.Spec.ClaimRef; ref != nil {
		ref.Kind, ref.APIVersion, ref.Namespace = share(ref.Kind), share(ref.APIVersion), share(ref.Namespace)
	}
	if source := pv.Spec.RBD; source != nil {
		shareAll(source.CephMonitors)
		source.RBDPool, source.RadosUser, source.Keyring, source.FSType =
			share(source.RBDPool), share(source.RadosUser), share(source.Keyring), share(source.FSType)
		shareSecret(source.SecretRef)
	}
	if source := pv.Spec.CSI; source != nil {
		source.Driver, source.FSType = share(source.Driver), share(source.FSType)
		source.VolumeAttributes = shareMap(source.VolumeAttributes)
		shareSecret(source.NodeStageSecretRef)
	}
}

func shareSecret(secret *corev1.SecretReference) {
	if secret != nil {
		secret.Namespace, secret.Name = share(secret.Namespace), share(secret.Name)
	}
}

// shareMap returns a map of its own, since the keys of one can't be replaced.
func shareMap(texts map[string]string) map[string]string {
	if len(texts) == 0 {
		return texts
	}
	shared := make(map[string]string, len(texts))
	for key, value := range texts {
		shared[share(key)] = share(value)
	}
	return shared
}

func share[T ~string](text T) T { return unique.Make(text).Value() }

func shareAll(texts []string) {
	for i, text := range texts {
		texts[i] = share(text)
	}
}
