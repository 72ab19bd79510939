// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner"
)

// clusterNamespace is there from a cluster's first minute to its last; its UID
// stands for the cluster.
const clusterNamespace = metav1.NamespaceSystem

// rightsDelay is for how long a right that is missing at the start is waited for: what
// is applied together does not come into force all at once.
const rightsDelay = 10 * time.Second

// clusterUIDTimeout bounds one question for it.
const clusterUIDTimeout = 10 * time.Second

// readClusterUID returns the identity of the Kubernetes cluster, or an empty text
// when it may not be read: the log then says what is missing. It returns an error
// only when ctx ends.
func readClusterUID(ctx context.Context, client corev1client.NamespacesGetter) (uid string, err error) {
	logger := klog.FromContext(ctx)
	said := false
	began := time.Now()
	err = wait.PollUntilContextCancel(ctx, serverRetry, true, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, clusterUIDTimeout)
		defer cancel()
		namespace, err := client.Namespaces().Get(ctx, clusterNamespace, metav1.GetOptions{})
		switch {
		case err == nil:
			uid = string(namespace.UID)
			return true, nil
		case apierrors.IsForbidden(err) && time.Since(began) < rightsDelay:
			return false, nil
		case apierrors.IsForbidden(err), apierrors.IsNotFound(err):
			logger.Info("WARNING: this Kubernetes cluster can't be told from others: no image is removed or changed that is marked as "+
				"a cluster's; and working without a journal: an image whose creation is cut off, and whose claim is deleted "+
				"before the next start, is then never removed; apply the manifests of rbac/ and restart", "err", err)
			return true, nil
		}
		if !said {
			logger.Error(err, "The namespace that identifies the cluster can't be read, trying on", "namespace", clusterNamespace)
			said = true
		}
		return false, nil
	})
	return uid, err
}

// onSeen calls seen for each volume that a cache of volumes gets to know, and when the
// cache is gone through again.
func onSeen(volumes cache.SharedInformer, seen func(before, pv *corev1.PersistentVolume)) error {
	see := func(before *corev1.PersistentVolume, obj any) {
		if pv, ok := obj.(*corev1.PersistentVolume); ok {
			seen(before, pv)
		}
	}
	_, err := volumes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { see(nil, obj) },
		UpdateFunc: func(old, obj any) {
			before, _ := old.(*corev1.PersistentVolume)
			see(before, obj)
		},
	})
	return err
}

// newRecoveredCounter counts what recovery did about images that were left.
func newRecoveredCounter(registry prometheus.Registerer) func(provisioner.Outcome) {
	counter := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rbd_provisioner_recovered_images_total",
		Help: "Images without a volume that attempts left which were cut off: removed, foreign (somebody else's or with data, so left) or kept (in use or out of reach, to be tried again).",
	}, []string{"outcome"})
	registry.MustRegister(counter)
	for _, outcome := range []provisioner.Outcome{provisioner.OutcomeRemoved, provisioner.OutcomeForeign, provisioner.OutcomeKept} {
		counter.WithLabelValues(string(outcome)) // so that it is there from the start, at 0
	}
	return func(outcome provisioner.Outcome) { counter.WithLabelValues(string(outcome)).Inc() }
}
