// SPDX-License-Identifier: Apache-2.0

package resize

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
)

// fencedClient is the client for external-resizer, which patches claims and volumes
// without a deadline, even on a replica that no longer leads. fencedClient gives each
// patch a deadline, counts it as an operation in flight, and refuses it once this replica
// may have lost the lease: it could undo a newer size. Events pass.
type fencedClient struct {
	kubernetes.Interface
	lease *lease.Guard
}

func (c fencedClient) CoreV1() corev1client.CoreV1Interface {
	return fencedCore{c.Interface.CoreV1(), c.lease}
}

type fencedCore struct {
	corev1client.CoreV1Interface
	lease *lease.Guard
}

func (c fencedCore) PersistentVolumes() corev1client.PersistentVolumeInterface {
	return fencedVolumes{c.CoreV1Interface.PersistentVolumes(), c.lease}
}

func (c fencedCore) PersistentVolumeClaims(namespace string) corev1client.PersistentVolumeClaimInterface {
	return fencedClaims{c.CoreV1Interface.PersistentVolumeClaims(namespace), c.lease}
}

type fencedVolumes struct {
	corev1client.PersistentVolumeInterface
	lease *lease.Guard
}

func (v fencedVolumes) Patch(ctx context.Context, name string, kind types.PatchType, data []byte, options metav1.PatchOptions, subresources ...string) (*corev1.PersistentVolume, error) {
	return lease.Fenced(ctx, v.lease, access.DefaultTimeout, func(ctx context.Context) (*corev1.PersistentVolume, error) {
		return v.PersistentVolumeInterface.Patch(ctx, name, kind, data, options, subresources...)
	})
}

type fencedClaims struct {
	corev1client.PersistentVolumeClaimInterface
	lease *lease.Guard
}

func (c fencedClaims) Patch(ctx context.Context, name string, kind types.PatchType, data []byte, options metav1.PatchOptions, subresources ...string) (*corev1.PersistentVolumeClaim, error) {
	return lease.Fenced(ctx, c.lease, access.DefaultTimeout, func(ctx context.Context) (*corev1.PersistentVolumeClaim, error) {
		return c.PersistentVolumeClaimInterface.Patch(ctx, name, kind, data, options, subresources...)
	})
}
