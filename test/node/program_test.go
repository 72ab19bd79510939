// SPDX-License-Identifier: Apache-2.0

package node

import (
	"os"
	"os/exec"
	"path/filepath"

	"ceph.com/rbd-provisioner/test/node/fixture"
)

// program builds a program from a folder beside this file, and copies it to the node. It
// returns its path there, and that in the inspector's Pod.
func program(f *fixture.Fixture, folder string) (onNode, inPod string) {
	f.Helper()
	path := filepath.Join(f.TempDir(), folder)
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	build.Dir = folder
	// As our own program in the image, it needs nothing of the node's.
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		f.Fatalf("build %s: %v: %s", folder, err, out)
	}
	raw, err := os.ReadFile(path)
	f.Must(err)
	onNode = "/run/" + f.Name + "-" + folder
	inPod = "/proc/1/root" + onNode
	_, err = suite.OnNode(f.Context(), string(raw), "cat >"+inPod+"; chmod 700 "+inPod)
	f.Must(err)
	return onNode, inPod
}
