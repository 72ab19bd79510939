// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Kubernetes up to 1.30 writes to a claim that grows at the same time as we do, so that one of
// both has to try again. We do that without a word.
func TestExpandWithoutAWarning(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", growing)
	claims := make([]*corev1.PersistentVolumeClaim, 10)
	for i := range claims {
		claims[i] = f.claim(fmt.Sprint("data-", i), class, block)
	}
	for _, claim := range claims {
		f.bound(claim)
		f.ask(claim, "2Gi")
	}
	for _, claim := range claims {
		f.grown(claim, "2Gi")
		for line := range strings.Lines(f.events(t.Context(), claim.UID)) {
			if strings.Contains(line, "Warning") && strings.Contains(line, "external-resizer") {
				t.Errorf("claim %s: %s", claim.Name, line)
			}
		}
	}
}
