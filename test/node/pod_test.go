// SPDX-License-Identifier: Apache-2.0

package node

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestPodReadsWhatAnotherHasWritten(t *testing.T) {
	t.Parallel()
	f := newFixture(t, nil)
	f.claim("data", nil)
	f.run("writer", "data", "echo 'these very bytes' >/data/file", corev1.PersistentVolumeFilesystem)
	got := f.run("reader", "data", "cat /data/file", corev1.PersistentVolumeFilesystem)
	if want := "these very bytes\n"; got != want {
		t.Errorf("read %q, want %q", got, want)
	}
}
