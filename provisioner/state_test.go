// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"testing"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestCloneStates: after which faults of cloning the library calls again even if the
// claim is gone by then.
func TestCloneStates(t *testing.T) {
	const noChange, background = controller.ProvisioningNoChange, controller.ProvisioningInBackground
	crashes := rbdtest.CloneCrashes(testImage, cloneImage)
	for _, test := range []struct {
		name  string
		fault rbdtest.FakeFault
		err   error
		want  controller.ProvisioningState
	}{
		{"the journal can't be read", crashes["before the journal is read"], errUnknown, noChange},
		{"whether it is there is not known", crashes["before it is known to be new"], errUnknown, noChange},
		{"the source can't be looked at", crashes["before the source is seen"], errUnknown, noChange},
		{"the intent can't be written", crashes["before the intent"], errUnknown, noChange},
		{"the intent was written, the answer lost", crashes["after the intent"], rbd.ErrTimeout, noChange},
		{"no snapshot of the source", crashes["before the snapshot"], errUnknown, noChange},
		{"one all the same, the answer lost", crashes["after the snapshot"], rbd.ErrTimeout, noChange},
		{"the clone is denied", crashes["before the clone"], rbd.ErrPermissionDenied, noChange},
		{"its data pool is none", crashes["before the clone"], rbd.ErrNotSupported, noChange},
		{"the pool is full", crashes["in the clone"], rbd.ErrPoolFull, background},
		{"the clone was made, the answer lost", crashes["after the clone"], rbd.ErrTimeout, background},
		{"the snapshot stays", crashes["before the snapshot's end"], errUnknown, background},
		{"the clone can't be grown", crashes["before it grows"], errUnknown, background},
		{"the clone can't be marked", crashes["before the mark"], errUnknown, background},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newCloneFixture(t)
			f.options.PVC.Spec.Resources.Requests = storage("2Gi") // to be grown
			test.fault.Err = test.err
			f.ceph.Fake(test.fault)
			_, state, err := f.provision(t.Context(), t)
			if !errors.Is(err, test.err) {
				t.Fatalf("got the error %v, want %v", err, test.err)
			}
			checkSame(t, "the state", test.want, state)
		})
	}
}
