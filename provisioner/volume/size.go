// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"math"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// mib is the unit to which sizes are rounded up; it is also that of the rbd command.
const mib = 1 << 20

// ImageSize returns the image's size in bytes for a claim's request, rounded up to a MiB.
// A volume has the capacity of its image, so both are made and grown to this size.
func ImageSize(resources corev1.VolumeResourceRequirements) (int64, error) {
	wanted := resources.Requests[corev1.ResourceStorage]
	if wanted.Sign() <= 0 {
		return 0, errors.New("the claim requests no storage: set spec.resources.requests.storage")
	}
	if wanted.CmpInt64(math.MaxInt64-mib) > 0 {
		return 0, errors.New("the claim requests more storage than an image can have")
	}
	size := (wanted.Value() + mib - 1) / mib * mib
	if limit, given := resources.Limits[corev1.ResourceStorage]; given && limit.CmpInt64(size) < 0 {
		return 0, fmt.Errorf("the claim's limit %s is below its request rounded up to a MiB, %s",
			limit.String(), resource.NewQuantity(size, resource.BinarySI))
	}
	return size, nil
}
