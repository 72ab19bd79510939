// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"os"
	"strings"
	"testing"
)

// TestTroubleshootingHasEveryError looks for all errors in docs/troubleshooting.md, where
// people look up what an event says.
func TestTroubleshootingHasEveryError(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	must(t, err)
	for _, err := range []error{ErrDenied, ErrCaps, ErrNotFound, ErrUnreachable, ErrInvalid, ErrBusy, ErrNoDriver, ErrOtherCluster} {
		// The rest is what to do, for those that say it themselves.
		text, _, _ := strings.Cut(err.Error(), ":")
		if !strings.Contains(string(page), text) {
			t.Errorf("docs/troubleshooting.md does not have %q", text)
		}
	}
}
