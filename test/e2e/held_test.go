// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"
)

// Images that are mirrored or in groups. A primary is deleted, and its mirroring ends. For
// all others an event names commands; once they are run, the image is removed without help.
// What people have snapshotted is never hidden by snapshots of mirrors.
func TestMirroredAndGroupedImages(t *testing.T) {
	t.Parallel()
	mirror := func(mode string) string { return "mirror image enable IMAGE " + mode }
	const (
		journal = "feature enable IMAGE exclusive-lock journaling"
		demote  = "mirror image demote IMAGE"
		undo    = "rbd mirror image disable --force IMAGE"
		join    = "group create NAME/g && group image add NAME/g IMAGE"
		leave   = "rbd group image rm NAME/g IMAGE"
	)
	for name, test := range map[string]struct {
		put  []string // commands of rbd
		want string   // commands in the event; empty for none
	}{
		"a primary, by snapshots":        {[]string{mirror("snapshot")}, ""},
		"a primary, by journal":          {[]string{journal, mirror("journal")}, ""},
		"a demoted one, by snapshots":    {[]string{mirror("snapshot"), demote}, undo},
		"a demoted one, by journal":      {[]string{journal, mirror("journal"), demote}, undo},
		"a group's":                      {[]string{join}, leave},
		"a group's that has a snapshot":  {[]string{join, "group snap create NAME/g@s"}, "rbd group snap rm NAME/g@s && " + leave},
		"one that a group has a copy of": {[]string{join, "group snap create NAME/g@s", leave[len("rbd "):]}, "rbd group snap rm NAME/g@s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			f.commands("rbd mirror pool enable NAME image", "")
			claim := f.claim("data", f.class("a", nil), nil)
			pv := f.bound(claim)
			image := f.name + "/" + pv.Spec.RBD.RBDImage
			f.rbd("snap", "create", "--no-progress", pv.Spec.RBD.RBDImage+"@mine")
			for _, commands := range test.put {
				f.commands("rbd "+strings.ReplaceAll(commands, "&& ", "&& rbd "), image)
			}
			f.delete(claim)
			if test.want != "" {
				f.event(pv, "it will be removed after: "+f.named(strings.ReplaceAll(test.want, "IMAGE", image)))
				f.commands(test.want, image)
			}
			f.event(pv, "image has snapshots: mine: it will be removed once they are gone")
			f.rbd("snap", "rm", "--no-progress", pv.Spec.RBD.RBDImage+"@mine")
			f.gone(pv)
			f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
			objects, err := rig.Ceph.Run(t.Context(), "rados", "--pool", f.name, "ls")
			f.must(err)
			if strings.Contains(objects, "rbd_header") || strings.Contains(objects, "rbd_mirror_snapshot") || strings.Contains(objects, "journal") {
				t.Errorf("the pool has the objects %s", objects)
			}
		})
	}
}

// commands runs commands that are joined by &&, for an image, as a person would.
func (f *fixture) commands(text, image string) {
	f.Helper()
	for _, command := range strings.Split(f.named(strings.ReplaceAll(text, "IMAGE", image)), " && ") {
		words := strings.Fields(command)
		_, err := rig.Ceph.Run(f.Context(), words[0], words[1:]...)
		f.must(err)
	}
}
