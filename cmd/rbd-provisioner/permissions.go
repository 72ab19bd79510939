// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	// permissionsTimeout bounds all permission checks at the start together.
	permissionsTimeout = 30 * time.Second
	// permissionRetry is how often a leader asks for a right that one of its loops waits for.
	permissionRetry = 10 * time.Second
)

// permission is what the process must be allowed to do with a resource.
type permission struct {
	group, resource string
	verbs           []string
	// namespace is empty for all namespaces, and for resources without one; name is empty
	// for all objects.
	namespace, name string
}

// expansionPermission is the one right that only growing volumes needs.
var expansionPermission = permission{resource: "persistentvolumeclaims/status", verbs: []string{"patch"}}

// attachPermissions are the rights that only attaching volumes of the node plugin needs.
var attachPermissions = []permission{
	{group: "storage.k8s.io", resource: "volumeattachments", verbs: []string{"list", "watch"}},
	{group: "storage.k8s.io", resource: "volumeattachments/status", verbs: []string{"patch"}},
}

// permissions returns the rights that rbac/ grants; a test keeps the two in step.
func (o *options) permissions(podNamespace string) []permission {
	list := []permission{
		{resource: "persistentvolumes", verbs: []string{"list", "watch", "create", "patch", "delete"}},
		{resource: "persistentvolumeclaims", verbs: []string{"get", "list", "watch"}},
		{group: "storage.k8s.io", resource: "storageclasses", verbs: []string{"list", "watch"}},
		{group: "storage.k8s.io", resource: "csidrivers", verbs: []string{"get"}, name: volume.CSIDriver},
		{resource: "events", verbs: []string{"create", "patch"}},
		{resource: "namespaces", verbs: []string{"get"}, name: clusterNamespace},
		{resource: "secrets", verbs: []string{"get"}, namespace: podNamespace},
	}
	list = append(list, attachPermissions...)
	if o.expansion {
		list = append(list, expansionPermission)
	}
	if o.leaderElection {
		list = append(list,
			permission{group: "coordination.k8s.io", resource: "leases", verbs: []string{"create"}, namespace: o.leaseNamespace},
			permission{group: "coordination.k8s.io", resource: "leases", verbs: []string{"get", "update"},
				namespace: o.leaseNamespace, name: o.leaseName()})
	}
	return list
}

// logMissingPermissions logs each permission that we lack according to the API server,
// one per line, so that an administrator does not meet them one by one in failures.
func logMissingPermissions(ctx context.Context, client authorizationclient.SelfSubjectAccessReviewInterface, list []permission) {
	logger := klog.FromContext(ctx)
	ctx, cancel := context.WithTimeout(ctx, permissionsTimeout)
	defer cancel()
	for _, p := range list {
		for _, verb := range p.verbs {
			allowed, err := p.allowed(ctx, client, verb)
			if err != nil {
				// Every account may ask, unless an administrator removed the cluster's
				// own roles; then requests will tell.
				logger.Error(err, "Permissions could not be checked")
				return
			}
			if !allowed {
				logger.Error(nil, "Permission is missing: apply the manifests of rbac/", "permission", p.describe(verb))
			}
		}
	}
}

// waitForPermissions waits until the API server allows all of list. It calls missing once, with
// the first right that is not there. It returns an error only when ctx ends.
func waitForPermissions(
	ctx context.Context, client authorizationclient.SelfSubjectAccessReviewInterface, list []permission, missing func(permission string),
) error {
	var told sync.Once
	return wait.PollUntilContextCancel(ctx, permissionRetry, true, func(ctx context.Context) (bool, error) {
		ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
		defer cancel()
		for _, p := range list {
			for _, verb := range p.verbs {
				allowed, err := p.allowed(ctx, client, verb)
				if apierrors.IsForbidden(err) {
					return true, nil // requests will tell
				}
				if err != nil {
					return false, nil // an error would end the wait
				}
				if !allowed {
					told.Do(func() { missing(p.describe(verb)) })
					return false, nil
				}
			}
		}
		return true, nil
	})
}

// allowed asks the API server.
func (p permission) allowed(ctx context.Context, client authorizationclient.SelfSubjectAccessReviewInterface, verb string) (bool, error) {
	resource, subresource, _ := strings.Cut(p.resource, "/")
	review, err := client.Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Group: p.group, Resource: resource, Subresource: subresource, Verb: verb, Namespace: p.namespace, Name: p.name,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	return review.Status.Allowed, nil
}

func (p permission) describe(verb string) string {
	text := verb + " " + p.resource
	if p.group != "" {
		text += "." + p.group
	}
	if p.name != "" {
		text += fmt.Sprintf(" %q", p.name)
	}
	if p.namespace != "" {
		text += fmt.Sprintf(" in namespace %q", p.namespace)
	}
	return text
}
