// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"fmt"
	"testing"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

func TestState(t *testing.T) {
	const finished, noChange, background = controller.ProvisioningFinished, controller.ProvisioningNoChange, controller.ProvisioningInBackground
	check := func(what string, want, got controller.ProvisioningState) {
		t.Helper()
		if got != want {
			t.Errorf("%s: got %s, want %s", what, got, want)
		}
	}
	for _, test := range []struct {
		name string
		err  error
		// without is the state if nothing was changed, with if something may have been.
		without, with controller.ProvisioningState
	}{
		{"success", nil, finished, finished},
		{"an answer that did not come", rbd.ErrTimeout, noChange, background},
		{"anything unknown", errors.New("unknown"), noChange, background},
		{"another image of the name", fmt.Errorf("image: %w: its size differs", image.ErrConflict), noChange, noChange},
	} {
		check(test.name+", with nothing changed", test.without, state(test.err, false))
		check(test.name+", with something changed", test.with, state(test.err, true))
	}
}
