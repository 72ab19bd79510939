// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"
)

// errNotStarted marks an error before which this call changed nothing in Ceph.
// It has no text of its own.
type errNotStarted struct{ error }

func (e errNotStarted) Unwrap() error { return e.error }

// state says what an error of Provision means to the library:
//
//   - NoChange when this call changed nothing: an earlier one may have, and the
//     library goes on remembering that.
//   - Background for everything else: an answer may have been lost, and an image
//     made all the same. The library then calls Provision again, even when the
//     claim is gone by then, and what was made is found by its fixed name. A
//     call too many costs nothing; one too few leaks an image.
//
// Finished is never returned with an error, since it makes the library forget.
// Neither is Reschedule: an image can be reached from any node.
func state(err error) controller.ProvisioningState {
	var notStarted errNotStarted
	switch {
	case err == nil:
		return controller.ProvisioningFinished
	case errors.As(err, &notStarted):
		return controller.ProvisioningNoChange
	default:
		return controller.ProvisioningInBackground
	}
}
