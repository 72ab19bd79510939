// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ImagesMatchVolumes returns nil when a pool holds exactly the images that
// PersistentVolumes name, and nothing in its trash. What is being made or
// removed meanwhile may show as a difference. The rig needs both halves.
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
	trash, err := c.Ceph.Trash(ctx, pool)
	if err != nil {
		return err
	}
	if len(trash) > 0 {
		return fmt.Errorf("pool %s has images in its trash: %v", pool, trash)
	}
	return nil
}
