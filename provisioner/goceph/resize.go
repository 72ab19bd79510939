// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import librbd "github.com/ceph/go-ceph/rbd"

func (p *radosPool) growImage(name string, sizeBytes uint64) error {
	image, err := librbd.OpenImage(p.io, name, librbd.NoSnapshot)
	return change(image, err, func() error { return grow(image, sizeBytes) })
}

// change runs f, which changes an image, and closes the image. err is from opening it.
func change(image *librbd.Image, err error, f func() error) error {
	if err != nil {
		return err
	}
	err = f()
	// Closing ends the watch that opening began. If it fails, the cluster drops the watch
	// by itself, and the change is already stored.
	_ = image.Close()
	return err
}

func grow(image *librbd.Image, sizeBytes uint64) error {
	size, err := image.GetSize()
	if err != nil || size >= sizeBytes {
		return err
	}
	// Not Resize: it would shrink an image that another client has grown since the size
	// was read.
	const allowShrink = false
	return image.Resize2(sizeBytes, allowShrink, func(_, _ uint64, _ any) int { return 0 }, nil)
}
