// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// withData is the claim of a survivor. It is the source of clones, and in the end must be
// as if it had never had any.
const withData = "with-data"

// cloneKind is the kind of a claim's source.
const cloneKind = "PersistentVolumeClaim"

// clones makes claims PREFIX-0, PREFIX-1 … for clones of some claims in turn.
func (f *fixture) clones(prefix string, count int, sources ...string) []*corev1.PersistentVolumeClaim {
	f.Helper()
	f.cloning = true
	claims := make([]*corev1.PersistentVolumeClaim, count)
	f.together(count, func(ctx context.Context, i int) (err error) {
		claims[i], err = f.request(ctx, f.name, fmt.Sprintf("%s-%d", prefix, i), func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: cloneKind, Name: sources[i%len(sources)]}
		})
		return err
	})
	return claims
}

// The provisioner is killed again and again while many claims get clones of few sources,
// some of which must be flattened; while some claims are deleted before they have their
// clones; and while sources and clones are deleted, the sources first.
func TestKilledWhileCloning(t *testing.T) {
	t.Parallel()
	// Other storms kill it more often, and test what all claims have in common.
	claims, kills := max(settings.claims/3, settings.kills), (settings.kills+1)/2
	s := newStorm(t, claims, kills, "-max-clone-depth=1")
	// Clones of this one are clones of a clone, and are flattened.
	middle := s.clones("middle", 1, withData)[0]
	s.bound(middle)
	plain := s.fixture.claims("plain", 1)[0]
	s.bound(plain)
	sources := []string{withData, middle.Name, plain.Name}
	s.fill = func(prefix string, count int) []*corev1.PersistentVolumeClaim {
		return s.clones(prefix, count, sources...)
	}
	s.create(claims, kills, true)
	s.sameAs(withData, withData, middle.Name)
	// These are deleted first.
	s.claims = slices.Concat([]*corev1.PersistentVolumeClaim{middle, plain}, s.claims)
	s.remove(kills)
	s.report()
}

// sameAs checks that all clones of some sources have what one of them has.
func (s *storm) sameAs(want string, sources ...string) {
	s.Helper()
	read := func(claim string) string {
		return s.rbd("export", "--no-progress", s.bound(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: claim}}).Spec.RBD.RBDImage, "-")
	}
	content := read(want)
	if strings.Trim(content, "\x00") == "" {
		s.Fatalf("the volume of %s is empty", want)
	}
	for _, claim := range s.claims {
		if slices.Contains(sources, claim.Spec.DataSource.Name) && read(claim.Name) != content {
			s.Errorf("the clone of claim %s, of %s, differs from its source", claim.Name, claim.Spec.DataSource.Name)
		}
	}
}

// The OSD hangs for longer than every deadline while clones are made. Some of their
// claims are deleted while it is unknown how far they got.
func TestCloneWhileTheOSDHangs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, longLease...)
	before := f.clones("before", 2, withData)
	for _, claim := range before {
		f.bound(claim)
	}
	under := f.clones("under-way", 12, withData)
	f.bound(under[0]) // for the others, it is unknown how far they got
	f.must(f.ceph.OSD.Pause(f.ctx()))
	during := f.clones("during", 3, withData)
	f.event(during[0], 2, noAnswer...)
	f.delete(during[0], under[11], before[0])
	f.must(f.ceph.OSD.Resume())
	for _, claim := range slices.Concat(during[1:], under[:11]) {
		f.bound(claim)
	}
	f.settled()
	f.running()
}

// noCloneRemains returns nil when images have one snapshot for each of their clones, and
// no other, and no note is left about finished work.
func (f *fixture) noCloneRemains(ctx context.Context, images []string) error {
	type info struct {
		ID     string
		Parent struct{ ID string }
	}
	type snapshot struct {
		Name      string
		Namespace struct{ Type string }
	}
	clones, kept := map[string]int{}, map[string]int{} // by the ID of the image
	var errs []error
	for _, image := range images {
		var i info
		var snapshots []snapshot
		if err := errors.Join(
			f.ceph.JSON(ctx, &i, "rbd", "info", f.name+"/"+image),
			f.ceph.JSON(ctx, &snapshots, "rbd", "snap", "ls", "--all", f.name+"/"+image),
		); err != nil {
			return err
		}
		if i.Parent.ID != "" {
			clones[i.Parent.ID]++
		}
		for _, s := range snapshots {
			if s.Namespace.Type == "trash" {
				kept[i.ID]++
			} else {
				errs = append(errs, fmt.Errorf("image %s has the snapshot %s", image, s.Name))
			}
		}
	}
	if !maps.Equal(clones, kept) {
		errs = append(errs, fmt.Errorf("images have as many clones: %v, and as many snapshots for them: %v", clones, kept))
	}
	objects, err := f.ceph.Run(ctx, "rados", "--pool", f.name, "ls")
	errs = append(errs, err)
	for _, object := range strings.Fields(objects) {
		if strings.HasPrefix(object, "rbd_provisioner.") {
			keys, err := f.ceph.Run(ctx, "rados", "--pool", f.name, "listomapkeys", object)
			if err != nil || keys != "" {
				errs = append(errs, err, fmt.Errorf("in %s is %q", object, keys))
			}
		}
	}
	return errors.Join(errs...)
}
