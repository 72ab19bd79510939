// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// remains turns a whole image into what a process leaves when it is killed while it
// creates or removes the image.
type remains struct {
	name string
	make func(f *fixture, image, id string)
}

// Half-made images of each kind hold the names of claims. The next attempt makes the
// images whole.
func TestHalfMadeImages(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	cases := []remains{
		// librbd writes the name, makes the object that translates the name, and then
		// makes the header.
		{"directory entry alone", func(f *fixture, image, id string) {
			f.rados("rm", "rbd_id."+image)
			f.rados("rm", "rbd_header."+id)
		}},
		{"no header", func(f *fixture, _, id string) { f.rados("rm", "rbd_header."+id) }},
		{"name object alone", func(f *fixture, image, id string) {
			f.rados("rm", "rbd_header."+id)
			f.forgetEntries(image, id)
		}},
		{"no name object", func(f *fixture, image, _ string) { f.rados("rm", "rbd_id."+image) }},
		{"whole, without its owner", func(*fixture, string, string) {}},
		{"whole, with half of its owner", func(f *fixture, image, _ string) {
			f.rbd("image-meta", "set", image, "kubernetes.io/created-for/pvc/namespace", f.name)
		}},
	}
	f.must(f.p.Stop())
	claims := f.claims("half", len(cases))
	for i, c := range cases {
		image := imagePrefix + string(claims[i].UID)
		t.Logf("%s: %s", image, c.name)
		f.rbd("create", "--size", "16M", "--image-feature", "layering", image)
		c.make(f, image, f.imageID(image))
	}
	f.must(f.p.Start(f.ctx()))
	for i, c := range cases {
		// All of them, so that a failure says which are repaired.
		t.Run(c.name, func(t *testing.T) { f.on(t).bound(claims[i]) })
	}
	f.settled()
}

// The pool's directory has a name without the id, or an id without the name. librbd
// writes both at once, so it never leaves that, but it can't repair it either. With the
// name, an event says that the image exists, and nothing is lost; when a person has
// repaired the directory, the claim is bound. With the id, the claim gets its image, and
// the id stays: a few bytes that no list shows.
func TestDirectoryOutOfStep(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	f.must(f.p.Stop())
	claims := f.claims("data", 2)
	var images, ids []string
	for _, claim := range claims {
		image := imagePrefix + string(claim.UID)
		f.rbd("create", "--size", "16M", "--image-feature", "layering", image)
		id := f.imageID(image)
		f.rados("rm", "rbd_header."+id)
		images, ids = append(images, image), append(ids, id)
	}
	f.rados("rmomapkey", "rbd_directory", "id_"+ids[0])
	f.rados("rmomapkey", "rbd_directory", "name_"+images[1])
	f.must(f.p.Start(f.ctx()))
	f.event(claims[0], 2, "image exists")
	f.bound(claims[1])
	f.rados("rmomapkey", "rbd_directory", "name_"+images[0])
	f.rados("rmomapkey", "rbd_directory", "id_"+ids[1])
	f.bound(claims[0])
}

// The removal of a half-made image was cut off, too: the part in the trash does not keep
// the image from being made, and is removed with it.
func TestHalfMadeImageInTrash(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	f.must(f.p.Stop())
	claims := f.claims("half", 2)
	for i, claim := range claims {
		image := imagePrefix + string(claim.UID)
		f.rbd("create", "--size", "16M", "--image-feature", "layering", image)
		id := f.imageID(image)
		f.trash(image, id)
		if i == 1 {
			f.rados("rm", "rbd_header."+id)
		}
	}
	f.must(f.p.Start(f.ctx()))
	for _, claim := range claims {
		f.bound(claim)
	}
	f.delete(claims...)
}

// Removals were cut off at each step. The next attempt finishes them.
func TestHalfRemovedImages(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	cases := []remains{
		// librbd enters the image into the trash, removes its name, its data and its
		// header, and then the entry in the trash.
		{"entered into the trash", func(f *fixture, image, id string) {
			entry := f.trashEntry(image, id)
			f.rbd("trash", "restore", id)
			f.rados("setomapval", "--input-file", entry, "rbd_trash", "id_"+id)
		}},
		{"no name object", func(f *fixture, image, id string) {
			entry := f.trashEntry(image, id)
			f.rbd("trash", "restore", id)
			f.rados("setomapval", "--input-file", entry, "rbd_trash", "id_"+id)
			f.rados("rm", "rbd_id."+image)
		}},
		{"in the trash", func(f *fixture, image, id string) { f.trash(image, id) }},
		{"without half of its data", func(f *fixture, image, id string) {
			f.trash(image, id)
			f.rados("rm", "rbd_data."+id+".0000000000000000")
		}},
		{"without header", func(f *fixture, image, id string) {
			f.trash(image, id)
			f.rados("rm", "rbd_data."+id+".0000000000000000")
			f.rados("rm", "rbd_data."+id+".0000000000000001")
			f.rados("rm", "rbd_header."+id)
		}},
		{"gone", func(f *fixture, image, _ string) { f.rbd("rm", "--no-progress", image) }},
	}
	claims := f.claims("half", len(cases))
	volumes := make([]*corev1.PersistentVolume, len(cases))
	for i, claim := range claims {
		volumes[i] = f.bound(claim)
		// Two objects of 4 MiB.
		f.rbd("bench", "--io-type", "write", "--io-size", "1M", "--io-total", "8M", volumes[i].Spec.RBD.RBDImage)
	}
	f.must(f.p.Stop())
	f.delete(claims...)
	for i, c := range cases {
		f.released(volumes[i])
		image := volumes[i].Spec.RBD.RBDImage
		t.Logf("%s: %s", image, c.name)
		c.make(f, image, f.imageID(image))
	}
	f.must(f.p.Start(f.ctx()))
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) { f.on(t).gone(volumes[i]) })
	}
	f.settled()
}

// on returns the fixture, and its neighbour, for a subtest.
func (f *fixture) on(t *testing.T) *fixture {
	sub := *f
	sub.T = t
	if f.neighbour != nil {
		sub.neighbour = f.neighbour.on(t)
	}
	return &sub
}

// forgetEntries removes an image from the pool's directory.
func (f *fixture) forgetEntries(image, id string) {
	f.Helper()
	f.rados("rmomapkey", "rbd_directory", "name_"+image)
	f.rados("rmomapkey", "rbd_directory", "id_"+id)
}

// trash moves an image into the trash as an interrupted removal does.
func (f *fixture) trash(image, id string) {
	f.Helper()
	f.rados("setomapval", "--input-file", f.trashEntry(image, id), "rbd_trash", "id_"+id)
}

// trashEntry moves an image into the trash as a person does, and returns the path of an
// entry that says that a removal did it. In Ceph's encoding the entry is a header of 6
// bytes, the source, the name with its length, two times of 8 bytes each, and the state.
func (f *fixture) trashEntry(image, id string) string {
	f.Helper()
	const (
		sourceAt, sourceUser, sourceRemoving = 6, 0, 3
		stateNormal                          = 0
	)
	f.rbd("trash", "mv", image)
	path := filepath.Join(f.rig.Dir, "trash-"+id)
	f.rados("getomapval", "rbd_trash", "id_"+id, path)
	entry, err := os.ReadFile(path)
	f.must(err)
	name := entry[sourceAt+1:]
	if entry[sourceAt] != sourceUser || int(binary.LittleEndian.Uint32(name)) != len(image) || string(name[4:4+len(image)]) != image ||
		entry[len(entry)-1] != stateNormal {
		f.Fatalf("an entry of the trash is not what is known of it: %x", entry)
	}
	entry[sourceAt] = sourceRemoving
	f.must(os.WriteFile(path, entry, 0o600))
	return path
}
