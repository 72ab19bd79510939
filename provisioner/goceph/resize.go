// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import librbd "github.com/ceph/go-ceph/rbd"

func (p *radosPool) growImage(name string, sizeBytes uint64) error {
	image, err := librbd.OpenImage(p.io, name, librbd.NoSnapshot)
	return change(image, err, func() error { return grow(image, sizeBytes) })
}

// change runs f, which changes an image that was opened with err, and closes the image.
func change(image *librbd.Image, err error, f func() error) error {
	if err != nil {
		return err
	}
	err = f()
	// Closing takes back the watch that opening made. When it goes wrong, the
	// cluster forgets the watch by itself, and what was changed is stored.
	_ = image.Close()
	return err
}

func grow(image *librbd.Image, sizeBytes uint64) error {
	size, err := image.GetSize()
	if err != nil || size >= sizeBytes {
		return err
	}
	// Not Resize, which makes an image smaller that somebody else has grown
	// since its size was read.
	const allowShrink = false
	return image.Resize2(sizeBytes, allowShrink, func(_, _ uint64, _ any) int { return 0 }, nil)
}
