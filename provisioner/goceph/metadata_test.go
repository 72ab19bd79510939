// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// testMetadataLikeLibrbd checks that entries are stored as librbd stores them, that other
// programs and clients that have the image open see them, and that nothing is written for
// an image that does not exist.
func (c *ceph) testMetadataLikeLibrbd(t *testing.T) {
	io := c.ioctx(t, c.conn, "images")
	pool := &radosPool{conn: c.conn, io: io}
	entries := map[string]string{
		"kubernetes.io/created-for/pvc/name": "data", "empty": "", "conference": "not an option",
		"with blanks, ü and \n": "\"värde\"\n", "long": strings.Repeat("long ", 1000),
	}
	ways := map[string]func(string, map[string]string) error{
		"ours": func(name string, entries map[string]string) error {
			return pool.SetMetadata(t.Context(), name, entries)
		},
		"librbd": pool.setMetadataOpen,
	}
	header, listed := map[string]map[string][]byte{}, map[string]string{}
	for way, set := range ways {
		name := "metadata-" + way
		if err := pool.CreateImage(t.Context(), name, rbd.ImageSpec{SizeBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		for _, step := range []map[string]string{{"long": "short"}, entries} {
			if err := set(name, step); err != nil {
				t.Fatal(err)
			}
		}
		id, err := pool.imageID(name)
		if err != nil {
			t.Fatal(err)
		}
		if header[way], err = io.GetAllOmapValues(headerObject+id, "", "metadata_", 100); err != nil {
			t.Fatal(err)
		}
		if listed[way], err = c.rig.Run(t.Context(), "rbd", "image-meta", "list", "images/"+name); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(header["librbd"], header["ours"]); diff != "" || len(header["ours"]) != len(entries) {
		t.Errorf("the header's entries differ (-librbd +ours):\n%s", diff)
	}
	if diff := cmp.Diff(listed["librbd"], listed["ours"]); diff != "" {
		t.Errorf("what rbd image-meta list prints differs (-librbd +ours):\n%s", diff)
	}

	t.Run("who has it open", func(t *testing.T) {
		image, err := librbd.OpenImage(c.ioctx(t, c.dial(t), "images"), "metadata-ours", librbd.NoSnapshot)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = image.Close() }() // only read
		for i := range 3 {
			want := fmt.Sprint("later ", i)
			if err := pool.SetMetadata(t.Context(), "metadata-ours", map[string]string{"later": want}); err != nil {
				t.Fatal(err)
			}
			if got, err := image.GetMetadata("later"); err != nil || got != want {
				t.Errorf("got %q, %v, want %q", got, err, want)
			}
		}
	})
	t.Run("an option of librbd", func(t *testing.T) {
		if err := pool.SetMetadata(t.Context(), "metadata-ours", map[string]string{"conf_rbd_cache": "neither"}); err == nil {
			t.Error("a value that the option can't have was stored")
		}
		if err := pool.SetMetadata(t.Context(), "metadata-ours", map[string]string{"conf_rbd_cache": "false"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("no header", func(t *testing.T) {
		c.addRemains(t, "images", "metadata-remains", rbdtest.RemainsDirectory)
		id, err := pool.imageID("metadata-remains")
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range ways {
			if err := set("metadata-remains", entries); !errors.Is(err, librbd.ErrNotFound) {
				t.Errorf("got %v, want that it is not found", err)
			}
		}
		if _, err := io.Stat(headerObject + id); !errors.Is(err, rados.ErrNotFound) {
			t.Errorf("the header: got %v, want that there is none", err)
		}
	})
	t.Run("no id", func(t *testing.T) {
		if err := io.WriteFull(idObject+"metadata-damaged", []byte{9, 0, 0, 0, 'a'}); err != nil {
			t.Fatal(err)
		}
		if err := pool.SetMetadata(t.Context(), "metadata-damaged", entries); err == nil {
			t.Error("no error")
		}
		if err := io.Delete(idObject + "metadata-damaged"); err != nil {
			t.Fatal(err)
		}
	})
}
