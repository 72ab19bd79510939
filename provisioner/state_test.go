// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"fmt"
	"testing"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

func TestState(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want controller.ProvisioningState
	}{
		{"success", nil, controller.ProvisioningFinished},
		{"nothing was done yet", errNotStarted{errors.New("no secret")}, controller.ProvisioningNoChange},
		{"the same, with words around it", fmt.Errorf("user's %w", errNotStarted{errors.New("no secret")}), controller.ProvisioningNoChange},
		{"an answer that did not come", rbd.ErrTimeout, controller.ProvisioningInBackground},
		{"a connection that broke", rbd.ErrConnectionLost, controller.ProvisioningInBackground},
		{"a full pool, perhaps half-way through", rbd.ErrPoolFull, controller.ProvisioningInBackground},
		{"anything unknown", errors.New("unknown"), controller.ProvisioningInBackground},
		{"a plain no to creating", createFault(fmt.Errorf("create: %w", rbd.ErrPermissionDenied)), controller.ProvisioningNoChange},
		{"no such data pool", createFault(rbd.ErrPoolNotFound), controller.ProvisioningNoChange},
		{"a no that may have come late", createFault(rbd.ErrPoolFull), controller.ProvisioningInBackground},
	} {
		if got := state(test.err); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
}
