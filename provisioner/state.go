// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/image"
)

// state says what an error of Provision means to the library. changed says that there
// may be an image that was made for the claim:
//
//	the error                         changed   state
//	none                              any       Finished
//	a different image has the name    any       NoChange
//	any other                         no        NoChange
//	any other                         yes       Background
//
// NoChange has the library keep what it knew: this call changed nothing, but an earlier
// one may have. After Background, it calls Provision again, even when the claim is gone
// by then, and Provision finds the image by its fixed name. A call too many costs
// nothing; one too few leaks an image.
//
// changed comes from access.Pool.Changed: whether a call that changes an image began
// and was not plainly refused. An image that already exists counts, since CreateImage
// has then found one. Notes and snapshots do not count, nor does a call that was
// refused for want of the lease. Only provision knows two more cases, and adds them:
// that the volume was made and may not be saved; and that the claim no longer wants its
// volume, so that the library asks until it is certain whether there is an image, even
// where no pool could be opened.
//
// Finished never comes with an error, since it makes the library forget. Neither does
// Reschedule: any node can reach an image.
func state(err error, changed bool) controller.ProvisioningState {
	switch {
	case err == nil:
		return controller.ProvisioningFinished
	case errors.Is(err, image.ErrConflict):
		return controller.ProvisioningNoChange
	case changed:
		return controller.ProvisioningInBackground
	default:
		return controller.ProvisioningNoChange
	}
}
