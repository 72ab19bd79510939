// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"sync"
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
	trim := new(trimmer).trim
	factory := informers.NewSharedInformerFactoryWithOptions(client, resyncPeriod, informers.WithTransform(trim))
	factory.InformerFor(&corev1.PersistentVolume{}, func(client kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		volumes := client.CoreV1().PersistentVolumes()
		return newInformer(client, &corev1.PersistentVolume{}, resync, trim, index.Indexers(), volumes.Watch,
			func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				return volumes.List(ctx, options)
			})
	})
	factory.InformerFor(&corev1.PersistentVolumeClaim{}, func(client kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		claims := client.CoreV1().PersistentVolumeClaims(metav1.NamespaceAll)
		byNamespace := cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}
		return newInformer(client, &corev1.PersistentVolumeClaim{}, resync, trim, byNamespace, claims.Watch,
			func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				return claims.List(ctx, options)
			})
	})
	return factory
}

// newInformer makes what the factory would make, but trims the list page by page. It
// asks a server that can send the list as a stream for that.
func newInformer(
	client kubernetes.Interface, kind runtime.Object, resync time.Duration, trim cache.TransformFunc, indexers cache.Indexers,
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error),
	list func(context.Context, metav1.ListOptions) (runtime.Object, error),
) cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		WatchFuncWithContext: watch,
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			// The server answers "any version" from its cache, in one piece.
			if options.ResourceVersion == "0" {
				options.ResourceVersion = ""
			}
			page, err := list(ctx, options)
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

// trimmer makes objects small before they are cached. It removes what this process
// never reads, and lets objects share what many have in common: half of the memory of a
// volume and its claim is maps of one or a few entries, each with room for eight. Like
// all cached objects, shared maps must not be changed.
//
// Others lose nothing. A claim that waits for a volume stays whole, since the library
// may write it back; of other claims, and of volumes, the library only ever sends the
// difference between two copies of the trimmed object.
type trimmer struct {
	texts     pool[map[string]string]
	resources pool[corev1.ResourceList]
}

// trim is a cache.TransformFunc.
func (t *trimmer) trim(obj any) (any, error) {
	switch object := obj.(type) {
	case *corev1.PersistentVolume:
		volume.Trim(object)
		t.shareMeta(&object.ObjectMeta)
		t.shareVolume(&object.Spec)
	case *corev1.PersistentVolumeClaim:
		object.ManagedFields = nil
		if object.Spec.VolumeName == "" {
			break
		}
		// volume.Trim does the same.
		maps.DeleteFunc(object.Annotations, func(key, _ string) bool {
			return key == corev1.LastAppliedConfigAnnotation
		})
		t.shareMeta(&object.ObjectMeta)
		if class := object.Spec.StorageClassName; class != nil {
			share(class)
		}
		object.Spec.Resources.Requests = t.shareResources(object.Spec.Resources.Requests)
		object.Status.Capacity = t.shareResources(object.Status.Capacity)
		object.Status.AllocatedResources = t.shareResources(object.Status.AllocatedResources)
	case metav1.Object:
		object.SetManagedFields(nil)
	}
	// A tombstone needs no trimming.
	return obj, nil
}

func (t *trimmer) shareMeta(object *metav1.ObjectMeta) {
	object.Annotations = t.shareTexts(object.Annotations)
	object.Labels = t.shareTexts(object.Labels)
	share(&object.Namespace)
	shareAll(object.Finalizers)
}

func (t *trimmer) shareVolume(spec *corev1.PersistentVolumeSpec) {
	spec.Capacity = t.shareResources(spec.Capacity)
	share(&spec.StorageClassName)
	if ref := spec.ClaimRef; ref != nil {
		share(&ref.Kind, &ref.Namespace, &ref.APIVersion)
	}
	source := spec.RBD
	if source == nil {
		return
	}
	shareAll(source.CephMonitors)
	share(&source.RBDPool, &source.RadosUser, &source.Keyring, &source.FSType)
	if secret := source.SecretRef; secret != nil {
		share(&secret.Namespace, &secret.Name)
	}
}

func (t *trimmer) shareTexts(texts map[string]string) map[string]string {
	if len(texts) == 0 {
		return nil
	}
	if _, once := texts[volume.AnnDeletionBegun]; once {
		return texts // no other volume has this time
	}
	key := make([]byte, 0, keyRoom)
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		key = strconv.AppendQuote(strconv.AppendQuote(key, name), texts[name])
	}
	return t.texts.share(key, texts)
}

func (t *trimmer) shareResources(resources corev1.ResourceList) corev1.ResourceList {
	if len(resources) == 0 {
		return nil
	}
	key := make([]byte, 0, keyRoom)
	for _, name := range slices.Sorted(maps.Keys(resources)) {
		quantity := resources[name]
		key = strconv.AppendQuote(strconv.AppendQuote(key, string(name)), quantity.String())
	}
	return t.resources.share(key, resources)
}

// poolSize limits how many different maps are shared. Users may give each claim its own
// annotation; sharing those maps would only hold them twice.
const poolSize = 1000

// keyRoom is enough for most maps.
const keyRoom = 512

// pool holds maps that many objects share. The zero pool is empty.
type pool[M any] struct {
	mu   sync.Mutex // guards maps
	maps map[string]M
}

// share returns a map that is equal to m: all maps of one key are equal.
func (p *pool[M]) share(key []byte, m M) M {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known, ok := p.maps[string(key)]; ok {
		return known
	}
	if len(p.maps) >= poolSize {
		return m
	}
	if p.maps == nil {
		p.maps = map[string]M{}
	}
	p.maps[string(key)] = m
	return m
}

func share(texts ...*string) {
	for _, text := range texts {
		*text = unique.Make(*text).Value()
	}
}

func shareAll(texts []string) {
	for i := range texts {
		share(&texts[i])
	}
}
