// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
)

// clusterNamespace exists for as long as its cluster, which its UID identifies.
const clusterNamespace = metav1.NamespaceSystem

// rightsDelay is how long the start waits for a missing right: manifests that are
// applied together do not come into force all at once.
const rightsDelay = 10 * time.Second

// readClusterUID returns the identity of the Kubernetes cluster, or an empty string when we
// may not read it: the log then says what is missing. It returns an error only when ctx ends.
func readClusterUID(ctx context.Context, client corev1client.NamespacesGetter) (uid string, err error) {
	logger := klog.FromContext(ctx)
	var logged sync.Once
	began := time.Now()
	err = wait.PollUntilContextCancel(ctx, serverRetry, true, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
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
		logged.Do(func() {
			logger.Error(err, "The namespace that identifies the cluster can't be read, will retry", "namespace", clusterNamespace)
		})
		return false, nil
	})
	return uid, err
}
