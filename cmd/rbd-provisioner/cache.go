// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// newInformers returns the factory of our caches. Memory grows with what they hold
// of each volume and claim in the cluster, and with what the first list of them
// takes: so that comes in pages, each of which is trimmed before the next is read.
func newInformers(client kubernetes.Interface) informers.SharedInformerFactory {
	factory := informers.NewSharedInformerFactoryWithOptions(client, resyncPeriod, informers.WithTransform(trim))
	factory.InformerFor(&corev1.PersistentVolume{}, func(client kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		volumes := client.CoreV1().PersistentVolumes()
		return newInformer(client, &corev1.PersistentVolume{}, resync, volumes.Watch,
			func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				return volumes.List(ctx, options)
			})
	})
	factory.InformerFor(&corev1.PersistentVolumeClaim{}, func(client kubernetes.Interface, resync time.Duration) cache.SharedIndexInformer {
		claims := client.CoreV1().PersistentVolumeClaims(metav1.NamespaceAll)
		return newInformer(client, &corev1.PersistentVolumeClaim{}, resync, claims.Watch,
			func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				return claims.List(ctx, options)
			})
	})
	return factory
}

// newInformer is what the factory would make, with a list that is trimmed page by
// page. A server that can send the list as a stream is asked for that.
func newInformer(
	client kubernetes.Interface, kind runtime.Object, resync time.Duration,
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error),
	list func(context.Context, metav1.ListOptions) (runtime.Object, error),
) cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		WatchFuncWithContext: watch,
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			// "Any version" is answered from the server's cache, in one piece.
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
	}, client), kind, resync, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
}

// trim takes out of an object what nobody here reads and what is often the larger
// part of it, before it is cached.
func trim(obj any) (any, error) {
	if accessor, err := meta.Accessor(obj); err == nil {
		accessor.SetManagedFields(nil)
	}
	// A tombstone has no metadata, and needs nothing taken out.
	return obj, nil
}
