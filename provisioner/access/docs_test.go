// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"os"
	"strings"
	"testing"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/monitors"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// TestTroubleshootingHasEveryError looks for all errors in docs/troubleshooting.md, where
// people look up what an event says.
func TestTroubleshootingHasEveryError(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		rbd.ErrUnreachable, rbd.ErrTimeout, rbd.ErrImageBusy, rbd.ErrConnectionLost, rbd.ErrPermissionDenied,
		rbd.ErrInvalidKey, rbd.ErrKeyType, rbd.ErrPoolNotFound, rbd.ErrPoolFull, rbd.ErrImageInUse, rbd.ErrImageHeld, rbd.ErrImageHasSnapshots,
		rbd.ErrNotSupported, rbd.ErrErasureCoded, monitors.ErrNoAddress, access.ErrSecretNotFound, access.ErrSecretForbidden,
	} {
		if !strings.Contains(string(page), err.Error()) {
			t.Errorf("docs/troubleshooting.md does not have %q", err)
		}
	}
}
