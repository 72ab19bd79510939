// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/image"
)

// state says what an error of Provision means to the library, where changed says that
// there may be an image that was made for the claim:
//
//	the error                                           changed   state
//	none                                                any       Finished
//	an image of the name is there that is not the one   any       NoChange
//	any other                                           no        NoChange
//	any other                                           yes       Background
//
// NoChange has the library remember what it knew: this call changed nothing, an earlier
// one may have. After Background it calls Provision again, even when the claim is gone
// by then, and what was made is found by its fixed name. A call too many costs nothing;
// one too few leaks an image.
//
// changed is what access.Pool.Changed says: whether a call that changes an image was
// begun that was not plainly refused. An image that is there already counts, since
// CreateImage has then found one. Notes do not count, nor do snapshots, and a call that
// was refused for want of the lease. Two things are known only here, and are said in
// provision: that the volume was made and may not be saved; and that the claim is not
// wanted any more, so that it is asked until it is certain whether there is an image,
// also where no pool could be opened.
//
// Finished is never returned with an error, since it makes the library forget.
// Neither is Reschedule: an image can be reached from any node.
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
