// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// trashPatience is how long images of deleted volumes may stay in the trash.
const trashPatience = 90 * time.Second

// ImagesMatchVolumes returns nil when a pool holds exactly the images that
// PersistentVolumes name, and its trash is empty. Images that are being made or deleted
// meanwhile may show as a difference. The rig needs both halves.
func (c *Cluster) ImagesMatchVolumes(ctx context.Context, pool string) error {
	volumes, err := c.Kube.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	var named []string
	for _, v := range volumes.Items {
		if v.Spec.RBD != nil && v.Spec.RBD.RBDPool == pool {
			named = append(named, v.Spec.RBD.RBDImage)
		}
	}
	slices.Sort(named)
	images, err := c.Ceph.Images(ctx, pool)
	if err != nil {
		return err
	}
	slices.Sort(images)
	if !slices.Equal(images, named) {
		return fmt.Errorf("pool %s has the images %v, volumes name %v", pool, images, named)
	}
	return Eventually(ctx, trashPatience, func(ctx context.Context) error {
		trash, err := c.Ceph.Trash(ctx, pool)
		if err == nil && len(trash) > 0 {
			err = fmt.Errorf("pool %s has images in its trash: %v", pool, trash)
		}
		return err
	})
}
