// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	storagev1client "k8s.io/client-go/kubernetes/typed/storage/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
)

// fencedClient is the client for external-attacher, which patches VolumeAttachments without a
// deadline, even on a replica that no longer leads. fencedClient gives each patch a
// deadline, counts it as an operation in flight, and refuses it once this replica may have
// lost the lease.
type fencedClient struct {
	kubernetes.Interface
	lease *lease.Guard
}

func (c fencedClient) StorageV1() storagev1client.StorageV1Interface {
	return fencedStorage{c.Interface.StorageV1(), c.lease}
}

type fencedStorage struct {
	storagev1client.StorageV1Interface
	lease *lease.Guard
}

func (s fencedStorage) VolumeAttachments() storagev1client.VolumeAttachmentInterface {
	return fencedAttachments{s.StorageV1Interface.VolumeAttachments(), s.lease}
}

type fencedAttachments struct {
	storagev1client.VolumeAttachmentInterface
	lease *lease.Guard
}

func (a fencedAttachments) Patch(ctx context.Context, name string, kind types.PatchType, data []byte, options metav1.PatchOptions, subresources ...string) (*storagev1.VolumeAttachment, error) {
	patched, err := lease.Fenced(ctx, a.lease, access.DefaultTimeout, func(ctx context.Context) (*storagev1.VolumeAttachment, error) {
		return a.VolumeAttachmentInterface.Patch(ctx, name, kind, data, options, subresources...)
	})
	if apierrors.IsNotFound(err) {
		// It was deleted meanwhile, as the Pod was. external-attacher would log an error.
		return new(storagev1.VolumeAttachment), nil
	}
	return patched, err
}
