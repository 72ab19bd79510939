// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// loseLease makes the fixture a replica that does not lead any more.
func (f *fixture) loseLease() { f.leaseLost.Store(true) }

// A replica that may not lead begins nothing, and does not let the library forget.
func TestNothingBeginsWithoutTheLease(t *testing.T) {
	synctest.Test(t, testNothingBeginsWithoutTheLease)
}

func testNothingBeginsWithoutTheLease(t *testing.T) {
	f := newFixture(t)
	pv := f.mustProvision(t)
	before := f.connector.connects.Load()
	f.loseLease()
	_, state, err := f.provision(t.Context(), t)
	if !errors.Is(err, lease.ErrNotLeading) || state != controller.ProvisioningNoChange {
		t.Errorf("Provision: got %s, %v", state, err)
	}
	if err := f.remove(t.Context(), t, pv); !errors.Is(err, lease.ErrNotLeading) {
		t.Errorf("Delete: got %v", err)
	}
	checkSame(t, "the number of connections", before, f.connector.connects.Load())
	f.checkMade(t)
}

// The lease is lost during an operation: no call that changes something follows.
func TestLeaseIsLostInTheMiddle(t *testing.T) {
	const noChange, background = controller.ProvisioningNoChange, controller.ProvisioningInBackground
	for _, test := range []struct {
		name string
		// during is the call in which the lease is lost.
		during   rbdtest.Call
		seed     bool // the image is there, without its marks
		state    controller.ProvisioningState
		wantMade bool
		marked   bool
	}{
		{"before the image is made", rbdtest.CallOpenPool, false, noChange, false, false},
		{"before it is said whose the image is", rbdtest.CallCreateImage, false, background, true, false},
		{"before that of an earlier attempt is completed", rbdtest.CallImage, true, background, true, false},
		{"before the volume is saved", rbdtest.CallSetMetadata, false, background, true, true},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			if test.seed {
				f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
			}
			f.ceph.Fake(rbdtest.FakeFault{Call: test.during, Before: f.loseLease})
			_, state, err := f.provision(t.Context(), t)
			if !errors.Is(err, lease.ErrNotLeading) || state != test.state {
				t.Errorf("got %s, %v, want %s", state, err, test.state)
			}
			image, made := f.ceph.Image(testPool, testImage)
			if made != test.wantMade || (len(image.Metadata) > 0) != test.marked {
				t.Errorf("the image: %v with %v", made, image.Metadata)
			}
			// The next leader finishes the operation.
			f.restart(t)
			checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
			f.checkMade(t)
		})
	}
}

func TestLeaseIsLostBeforeARemoval(t *testing.T) {
	for _, test := range []struct {
		name string
		run  func(context.Context, *testing.T, *fixture) error
	}{
		{"of an image", func(ctx context.Context, t *testing.T, f *fixture) error {
			return f.remove(ctx, t, f.wantVolume())
		}},
		{"of what is left of one", func(ctx context.Context, t *testing.T, f *fixture) error {
			_, _, err := f.provision(ctx, t)
			return err
		}},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			f.ceph.AddRemains(testPool, testImage, rbdtest.RemainsDirectoryOnly)
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Before: f.loseLease})
			if err := test.run(t.Context(), t, f); !errors.Is(err, lease.ErrNotLeading) {
				t.Errorf("got %v, want %v", err, lease.ErrNotLeading)
			}
			if got := f.ceph.Remains(testPool); len(got) != 1 {
				t.Errorf("the remains are %v, want them untouched", got)
			}
		})
	}
}
