// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/journal"
)

// halfClone is what a process leaves when it is killed while it clones an image. In all
// cases but the first, the snapshot is there.
type halfClone struct {
	name string
	make func(f *fixture, image, source, snapshot string)
}

// Half-made clones of each kind: if the claim still wants the clone, the next attempt
// makes it whole; if the claim is gone, nothing is left of the clone or of its snapshot.
func TestHalfMadeClones(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	clone := func(f *fixture, image, source, snapshot string) {
		f.rbd("clone", "--rbd-default-clone-format=2", source+"@"+snapshot, f.name+"/"+image)
	}
	cases := []halfClone{
		{"snapshot alone", func(*fixture, string, string, string) {}},
		// librbd makes an empty image, writes the parent into it, then writes it into the
		// parent, and then copies the metadata.
		{"directory entry alone", func(f *fixture, image, _, _ string) {
			f.rbd("create", "--size", "16M", "--image-feature", "layering", image)
			id := f.imageID(image)
			f.rados("rm", "rbd_id."+image)
			f.rados("rm", "rbd_header."+id)
		}},
		{"no parent", func(f *fixture, image, _, _ string) {
			f.rbd("create", "--size", "16M", "--image-feature", "layering", image)
		}},
		{"not known to its parent", func(f *fixture, image, source, snapshot string) {
			clone(f, image+"-whole", source, snapshot)
			parent := filepath.Join(f.rig.Dir, "parent-"+image)
			f.rados("getomapval", "rbd_header."+f.imageID(image+"-whole"), "parent", parent)
			f.rbd("rm", "--no-progress", image+"-whole")
			f.rbd("create", "--size", "16M", "--image-feature", "layering", image)
			f.rados("setomapval", "--input-file", parent, "rbd_header."+f.imageID(image), "parent")
		}},
		{"without metadata", func(f *fixture, image, source, snapshot string) {
			clone(f, image, source, snapshot)
			f.forgetMarks(image)
		}},
		{"with its source's metadata", clone},
		{"without snapshot", func(f *fixture, image, source, snapshot string) {
			clone(f, image, source, snapshot)
			f.rbd("snap", "rm", "--no-progress", source+"@"+snapshot)
		}},
		{"marked in part", func(f *fixture, image, source, snapshot string) {
			clone(f, image, source, snapshot)
			f.rbd("snap", "rm", "--no-progress", source+"@"+snapshot)
			f.rbd("image-meta", "set", image, "kubernetes.io/created-for/pvc/name", "half")
		}},
	}
	source := f.bound(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: withData}})
	f.must(f.p.Stop())
	wanted, gone := f.clones("wanted", len(cases), withData), f.clones("gone", len(cases), withData)
	for i, c := range cases {
		for _, claim := range []*corev1.PersistentVolumeClaim{wanted[i], gone[i]} {
			image, snapshot := imagePrefix+string(claim.UID), "rbd_provisioner.clone."+string(claim.UID)
			t.Logf("%s, claim %s: %s", image, claim.Name, c.name)
			f.rbd("snap", "create", "--no-progress", source.Spec.RBD.RBDImage+"@"+snapshot)
			c.make(f, image, source.Spec.RBD.RBDImage, snapshot)
			f.note(claim, source)
		}
	}
	f.delete(gone...)
	f.must(f.p.Start(f.ctx()))
	want := f.rbd("export", "--no-progress", source.Spec.RBD.RBDImage, "-")
	for i, c := range cases {
		// All of them, so that a failure says which are repaired.
		t.Run(c.name, func(t *testing.T) {
			f := f.on(t)
			if got := f.rbd("export", "--no-progress", f.bound(wanted[i]).Spec.RBD.RBDImage, "-"); got != want {
				t.Error("the clone differs from its source")
			}
		})
	}
	f.settled()
}

// note writes the intent to make a clone for a claim, as the provisioner does.
func (f *fixture) note(claim *corev1.PersistentVolumeClaim, source *corev1.PersistentVolume) {
	f.Helper()
	image := imagePrefix + string(claim.UID)
	text, err := json.Marshal(journal.Intent{
		Namespace: claim.Namespace, Claim: claim.Name, ClaimUID: string(claim.UID), Volume: "pvc-" + string(claim.UID),
		SizeBytes: claim.Spec.Resources.Requests.Storage().Value(),
		SourceID:  f.imageID(source.Spec.RBD.RBDImage), SourceVolume: source.Name,
	})
	f.must(err)
	path := filepath.Join(f.rig.Dir, "intent-"+string(claim.UID))
	f.must(os.WriteFile(path, text, 0o600))
	f.rados("setomapval", "--input-file", path, journal.New(f.uid(), "ceph.com/rbd", "ceph.com/rbd").Intents.Object, image)
}

// forgetMarks removes the owner metadata of an image.
func (f *fixture) forgetMarks(image string) {
	f.Helper()
	for key := range f.marks(image) {
		f.rbd("image-meta", "remove", image, key)
	}
}
