// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/test/cluster"
)

// meet starts the fixture's neighbour: a second Kubernetes cluster that has its own
// provisioner and its own classes of the same pool. All of it is gone before the fixture
// ends.
func (f *fixture) meet(flags ...string) {
	f.Helper()
	t := f.T
	other := startRig(t, cluster.Config{SkipCeph: true})
	t.Cleanup(func() { endRig(t, other) })
	key, err := f.ceph.Key(t.Context(), f.name)
	f.must(err)
	f.neighbour = &fixture{T: t, name: f.name, ceph: f.ceph, kube: other.Kube, rig: other}
	f.neighbour.join(key, flags...)

	// Otherwise the cleanup of the fixture would come after that of the second rig.
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		f.neighbour.deleteOwnClaims()
		f.settled()
		f.neighbour.leave()
		f.neighbour = nil
	})
}

// Two Kubernetes clusters share a pool. Each deletes only what its own volumes name, even
// if one of them is killed meanwhile.
func TestTwoClustersInOnePool(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	f.meet(shortLease...)
	// With the same names, in namespaces of the same name.
	ours, theirs := f.claims("data", 10), f.neighbour.claims("data", 10)
	f.settled()
	f.delete(ours[:5]...)
	f.neighbour.delete(theirs[5:]...)
	f.p.Kill()
	f.must(f.p.Start(f.ctx()))
	f.settled()
	for _, claim := range ours[5:] {
		f.bound(claim)
	}
	for _, claim := range theirs[:5] {
		f.neighbour.bound(claim)
	}
}

// A provisioner deletes only the volumes of its own identity, and takes no claims of
// another provisioner's name.
func TestTwoIdentities(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	const name = "example.com/second"
	f.class(f.name+"-second", name, corev1.PersistentVolumeReclaimDelete)
	second := f.start([]string{"PROVISIONER_NAME=" + name}, "-id=second", "-leader-election=false")
	claims := f.claims("ours", 5)
	f.together(5, func(ctx context.Context, i int) error {
		claim, err := f.request(ctx, f.name+"-second", fmt.Sprintf("theirs-%d", i))
		if err == nil && i == 0 {
			claims = append(claims, claim)
		}
		return err
	})
	theirs := f.bound(claims[5])
	ours := f.bound(claims[0])
	if a, b := ours.Annotations["rbdProvisionerIdentity"], theirs.Annotations["rbdProvisionerIdentity"]; a != "ceph.com/rbd" || b != "second" {
		t.Errorf("the volumes have the identities %q and %q", a, b)
	}

	// Without the second provisioner, its volumes wait.
	f.must(second.Stop())
	f.delete(claims[0], claims[5])
	f.released(theirs)
	f.gone(ours)
	f.released(theirs)
	f.rbd("info", theirs.Spec.RBD.RBDImage)

	// A provisioner with the same name and another identity leaves ours alone.
	f.must(f.p.Stop())
	impostor := f.start(nil, append([]string{"-id=third"}, shortLease...)...)
	waiting := f.bound(claims[1])
	f.delete(claims[1])
	f.released(waiting)
	f.logged(impostor, `"Leading"`)
	own := f.claim("of-the-third")
	third := f.bound(own)
	f.delete(own)
	f.gone(third)
	f.purged(third) // while the one that deleted it runs
	f.rbd("info", waiting.Spec.RBD.RBDImage)
	f.released(waiting)
	f.must(impostor.Stop())

	f.must(f.p.Start(f.ctx()))
	f.must(second.Start(f.ctx()))
	t.Cleanup(func() {
		if !t.Failed() {
			f.must(second.Stop())
		}
	})
	f.gone(waiting)
	f.gone(theirs)
	// The second's leftovers are removed before it is stopped.
	f.deleteOwnClaims()
	f.settled()
}

// An image that has the name of a claim's image, and says that it has another owner,
// stays as it is. Names come from UIDs: only a person who copies volumes makes such an
// image.
func TestImageOfAnotherHasTheName(t *testing.T) {
	t.Parallel()
	f := newFixture(t, shortLease...)
	f.must(f.p.Stop())
	claims := f.claims("data", 2)
	for _, claim := range claims {
		image := imagePrefix + string(claim.UID)
		f.rbd("create", "--size", "16M", "--image-feature", "layering", image)
		f.rbd("image-meta", "set", image, "kubernetes.io/created-for/pv/name", "pvc-of-another")
		f.kept = append(f.kept, survivor{image: image, state: f.state(image)})
	}
	f.must(f.p.Start(f.ctx()))
	for _, claim := range claims {
		f.event(claim, 1, `exists and is not the one for this claim: its metadata kubernetes.io/created-for/pv/name is "pvc-of-another"`)
	}
	f.untouched()

	// The one claim is given up; the other is bound once a person has repaired the cause.
	f.delete(claims[0])
	mended := f.kept[len(f.kept)-1]
	f.kept = f.kept[:len(f.kept)-1]
	f.rbd("rename", mended.image, "restored")
	f.kept = append(f.kept, survivor{image: "restored", state: f.state("restored")})
	f.bound(claims[1])
}
