// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"ceph.com/rbd-provisioner/test/node/fixture"
)

// TestWatchedImage: a client beside Kubernetes uses the image of a volume. A Pod does not
// start, its event names the client, and nothing is mapped; it starts by itself when the
// client is gone.
func TestWatchedImage(t *testing.T) {
	t.Parallel()
	f := suite.New(t, nil)
	image := fixture.Image(f.Claim("data", nil))
	end := watch(f, image)
	f.Start(f.NewPodWith("pod", "data", "echo written >/data/file", fixture.Filesystem))
	f.Event("pod", "is in use by the client at "+suite.Rig.Address)
	t.Log(f.Events(t.Context(), "pod"))
	f.Must(watchers(t.Context(), image, 1))
	end()
	f.Succeeded("pod")
}

// watch lets a client on the rig's machine use an image, until the function that it
// returns is called.
func watch(f *fixture.Fixture, image string) (end func()) {
	f.Helper()
	// The command ends as it should, and not only after Ceph's timeout for watchers, when
	// its standard input does.
	pipe := filepath.Join(f.TempDir(), "pipe")
	f.Must(syscall.Mkfifo(pipe, 0o600))
	in, err := os.OpenFile(pipe, os.O_RDWR, 0)
	f.Must(err)
	var ended sync.WaitGroup
	ended.Go(func() {
		ctx := context.WithoutCancel(f.Context())
		if _, err := suite.Rig.Ceph.Run(ctx, "sh", "-c", `exec rbd watch "$1" <"$2"`, "sh", image, pipe); err != nil {
			f.Errorf("watch %s: %v", image, err)
		}
	})
	end = sync.OnceFunc(func() {
		_ = in.Close() // nothing was written
		ended.Wait()
	})
	f.Cleanup(end)
	f.Eventually(func(ctx context.Context) error { return watchers(ctx, image, 1) })
	return end
}
