// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// patience bounds each wait. The baseline needs the most of it.
const patience = 5 * time.Minute

// observer records when a watch shows volumes and claims.
type observer struct {
	factory informers.SharedInformerFactory
	stop    context.CancelFunc

	mu sync.Mutex // guards what follows
	// saved and bound are when a claim's volume was first seen and when the claim was
	// seen bound; gone is when the volume was seen to be deleted. The keys are UIDs of
	// claims.
	saved, bound, gone map[types.UID]time.Time
	// changed is closed and replaced when any of them changes.
	changed chan struct{}
}

func newObserver(ctx context.Context, config *rest.Config) (*observer, error) {
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf
	config.WarningHandlerWithContext = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	o := &observer{
		factory: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(shrink)),
		stop:    cancel,
		saved:   map[types.UID]time.Time{},
		bound:   map[types.UID]time.Time{},
		gone:    map[types.UID]time.Time{},
		changed: make(chan struct{}),
	}
	note := func(obj any) { o.note(obj, false) }
	for _, informer := range []cache.SharedIndexInformer{
		o.factory.Core().V1().PersistentVolumes().Informer(),
		o.factory.Core().V1().PersistentVolumeClaims().Informer(),
	} {
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    note,
			UpdateFunc: func(_, obj any) { note(obj) },
			DeleteFunc: func(obj any) {
				if lost, ok := obj.(cache.DeletedFinalStateUnknown); ok {
					obj = lost.Obj
				}
				o.note(obj, true)
			},
		}); err != nil {
			cancel()
			return nil, err
		}
	}
	o.factory.StartWithContext(ctx)
	for kind, synced := range o.factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			cancel()
			return nil, fmt.Errorf("watch %v: not begun", kind)
		}
	}
	return o, nil
}

func (o *observer) close() {
	o.stop()
	o.factory.Shutdown()
}

// shrink keeps only what note reads.
func shrink(obj any) (any, error) {
	switch full := obj.(type) {
	case *corev1.PersistentVolume:
		return &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: full.Name, UID: full.UID, ResourceVersion: full.ResourceVersion},
			Spec:       corev1.PersistentVolumeSpec{ClaimRef: full.Spec.ClaimRef},
		}, nil
	case *corev1.PersistentVolumeClaim:
		return &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: full.Namespace, Name: full.Name, UID: full.UID, ResourceVersion: full.ResourceVersion},
			Status:     corev1.PersistentVolumeClaimStatus{Phase: full.Status.Phase},
		}, nil
	}
	return obj, nil
}

func (o *observer) note(obj any, deleted bool) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	times, uid := o.saved, types.UID("")
	switch object := obj.(type) {
	case *corev1.PersistentVolume:
		if object.Spec.ClaimRef == nil {
			return
		}
		uid = object.Spec.ClaimRef.UID
		if deleted {
			times = o.gone
		}
	case *corev1.PersistentVolumeClaim:
		if deleted || object.Status.Phase != corev1.ClaimBound {
			return
		}
		times, uid = o.bound, object.UID
	}
	if _, again := times[uid]; again {
		return
	}
	times[uid] = now
	close(o.changed)
	o.changed = make(chan struct{})
}

// forget drops all records. Call it only while nothing waits.
func (o *observer) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.saved)
	clear(o.bound)
	clear(o.gone)
}

// wait waits until each claim is in times, which is one of o's maps, and returns when the
// last one got there.
func (o *observer) wait(ctx context.Context, what string, times map[types.UID]time.Time, claims []types.UID) (time.Time, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not within %s", patience))
	defer cancel()
	for {
		var last time.Time
		missing := 0
		o.mu.Lock()
		for _, claim := range claims {
			at, ok := times[claim]
			if !ok {
				missing++
			} else if at.After(last) {
				last = at
			}
		}
		changed := o.changed
		o.mu.Unlock()
		if missing == 0 {
			return last, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return last, fmt.Errorf("wait until %s: %d of %d are missing: %w", what, missing, len(claims), context.Cause(ctx))
		}
	}
}
