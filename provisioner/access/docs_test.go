// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"os"
	"strings"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// People look up what an event says: the page must have it.
func TestTroubleshootingHasEveryError(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		rbd.ErrUnreachable, rbd.ErrTimeout, rbd.ErrImageBusy, rbd.ErrConnectionLost, rbd.ErrPermissionDenied,
		rbd.ErrInvalidKey, rbd.ErrPoolNotFound, rbd.ErrPoolFull, rbd.ErrImageInUse, rbd.ErrImageHasSnapshots,
		rbd.ErrNotSupported, access.ErrNoAddress, access.ErrSecretNotFound, access.ErrSecretForbidden,
	} {
		if !strings.Contains(string(page), err.Error()) {
			t.Errorf("docs/troubleshooting.md does not have %q", err)
		}
	}
}
