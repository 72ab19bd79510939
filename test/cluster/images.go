// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// trashPatience is how long images of deleted volumes may stay in the trash.
const trashPatience = 90 * time.Second

// ImageOf returns the image of a volume and its pool, whether the volume is in-tree or our
// node plugin's; empty for other volumes.
func ImageOf(pv *corev1.PersistentVolume) (pool, image string) {
	switch source := pv.Spec; {
	case source.RBD != nil:
		return source.RBD.RBDPool, source.RBD.RBDImage
	case source.CSI != nil && source.CSI.Driver == "rbd.ceph.com":
		return source.CSI.VolumeAttributes["pool"], source.CSI.VolumeAttributes["image"]
	default:
		return "", ""
	}
}

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
		if of, image := ImageOf(&v); of == pool {
			named = append(named, image)
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
