// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"ceph.com/rbd-provisioner/provisioner/krbd"
)

// A plugin that is killed before or after any of its changes is followed by one that ends
// the work: kubelet repeats the call and goes on, or gives up the Pod and takes the way
// back. Nothing stays, and no file system is made where there is one.
func TestKilledAnywhere(t *testing.T) {
	for name, volume := range map[string]struct {
		capability *csi.VolumeCapability
		content    string
		changes    int // of the whole life
	}{
		"ext4":           {capability: fileSystem(ext4, writer), changes: 8},
		"xfs":            {capability: fileSystem(xfs, writer), changes: 8},
		"a clone":        {capability: fileSystem(ext4, singleWriter), content: ext4, changes: 8},
		"block":          {capability: block(writer), changes: 4},
		"shared block":   {capability: block(writers), changes: 4},
		"read-only":      {capability: fileSystem(ext4, readers), content: ext4, changes: 7},
		"read-only xfs":  {capability: fileSystem(xfs, readers), content: xfs, changes: 7},
		"block to read":  {capability: block(readers), changes: 4},
		"no type named":  {capability: fileSystem("", writer), changes: 8},
		"clone of other": {capability: fileSystem("", writer), content: xfs, changes: 8},
	} {
		t.Run(name, func(t *testing.T) {
			life := func(w *world) []func(context.Context) error {
				return []func(context.Context) error{w.stage, w.publish,
					func(ctx context.Context) error { w.image.size = 2 * gib; return w.expand(ctx, 2*gib) }, w.unpublish, w.unstage}
			}
			setUp := func(t *testing.T) *world {
				w := newWorld(t)
				w.capability, w.image.fsType = volume.capability, volume.content
				return w
			}
			w := setUp(t)
			for _, call := range life(w) {
				w.must(call(t.Context()))
				w.must(call(t.Context())) // repeated, it succeeds again
			}
			w.clean()
			undisturbed := setUp(t)
			for _, call := range life(undisturbed) {
				undisturbed.must(call(t.Context()))
			}
			changes := len(undisturbed.node.did)
			if changes != volume.changes {
				t.Errorf("a life took the changes %q, %d, want %d", undisturbed.node.did, changes, volume.changes)
			}
			for killAt := 1; killAt <= changes; killAt++ {
				for _, killAfter := range []bool{false, true} {
					for _, goOn := range []bool{true, false} {
						what := fmt.Sprintf("%s %d %s, then %s", map[bool]string{false: "before", true: "after"}[killAfter], killAt,
							undisturbed.node.did[killAt-1], map[bool]string{true: "goes on", false: "gives up"}[goOn])
						t.Run(what, func(t *testing.T) {
							w := setUp(t)
							w.node.killAt, w.node.killAfter = killAt, killAfter
							w.lifeWithDeath(life(w), goOn)
						})
					}
				}
			}
		})
	}
}

// lifeWithDeath makes the calls of a volume's life, one of which kills the plugin.
func (w *world) lifeWithDeath(life []func(context.Context) error, goOn bool) {
	w.Helper()
	ctx := w.Context()
	died := false
	for i, call := range life {
		err := call(ctx)
		if w.node.killed {
			died = true
			w.start()
			if !goOn {
				break
			}
			err = call(ctx)
		}
		w.must(err)
		if i == 1 {
			w.checkPublished()
		}
	}
	if !died {
		w.Fatal("nobody was killed")
	}
	if !goOn {
		w.must(w.unpublish(ctx))
		w.must(w.unstage(ctx))
	}
	w.clean()
	if w.image.made > 1 {
		w.Errorf("mkfs ran %d times", w.image.made)
	}
}

// checkPublished checks that the Pod has its volume, once and as it should be.
func (w *world) checkPublished() {
	w.Helper()
	m, mounted := w.mountAt(w.target)
	if !mounted {
		w.Fatal("the Pod has no volume")
	}
	readOnly := w.capability.GetMount() != nil && w.capability.GetAccessMode().GetMode() == readers
	if got := m.MountOptions[0] == "ro"; got != readOnly {
		w.Errorf("read-only: got %t, want %t", got, readOnly)
	}
	count := 0
	mounts, _ := w.node.Table()
	for _, m := range mounts {
		if m.MountPoint == w.target || m.MountPoint == w.staging {
			count++
		}
	}
	if w.capability.GetBlock() != nil && count != 1 || w.capability.GetMount() != nil && count != 2 {
		w.Errorf("got mounts %v", paths(mounts))
	}
}

// After an error that kubelet takes for final it never asks us to unstage: then nothing
// may be left.
func TestFailuresLeaveNothing(t *testing.T) {
	for killAt := 1; killAt <= 3; killAt++ {
		w := newWorld(t)
		w.node.killAt, w.node.killAfter = killAt, true
		if err := w.stage(t.Context()); err == nil {
			t.Fatal("want an error")
		}
		w.start()
		// The next attempt is refused at once, for a reason that stays.
		delete(w.attributes, "user")
		err := w.stage(t.Context())
		if isFinal(err) {
			w.refused(err, codes.InvalidArgument, `"user"`)
			w.clean()
			continue
		}
		w.refused(err, codes.Unavailable, `"user"`, "still mapped", w.staging)
		w.must(w.unstage(t.Context()))
		w.clean()
	}

	w := newWorld(t)
	w.node.mountErr = fmt.Errorf("mount failed: exit status 32\nOutput: wrong fs type")
	w.refused(w.stage(t.Context()), codes.Internal, "rbd/kubernetes-dynamic-pvc-1", "/dev/rbd0", "exit status 32; Output: wrong fs type", "dmesg")
	w.clean()

	w.node.unmapErr = fmt.Errorf("%w", errKilled)
	w.refused(w.stage(t.Context()), codes.Unavailable, "wrong fs type", "still mapped")
	w.node.unmapErr = nil
	w.must(w.unstage(t.Context()))
	w.clean()
}

// A node that was halted has lost its devices and mounts; kubelet's folders are there.
func TestReboot(t *testing.T) {
	w := newWorld(t)
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	w.node.reboot()
	w.start()
	w.node.listErr = krbd.ErrNoDriver // nobody has loaded it yet
	w.must(w.unpublish(t.Context()))
	w.must(w.unstage(t.Context()))
	w.node.listErr = nil
	w.clean()
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	w.node.reboot()
	// This time the Pod stays.
	w.refused(w.publish(t.Context()), codes.FailedPrecondition, "must be staged first")
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	w.checkPublished()
	if w.image.made != 1 {
		t.Errorf("mkfs ran %d times", w.image.made)
	}
}

func TestCodes(t *testing.T) {
	for code, want := range map[codes.Code]bool{
		codes.OK: false, codes.Aborted: false, codes.DeadlineExceeded: false, codes.Unavailable: false,
		codes.Internal: true, codes.InvalidArgument: true, codes.FailedPrecondition: true,
	} {
		if got := isFinal(status.Error(code, "")); got != want {
			t.Errorf("%s: got %t, want %t", code, got, want)
		}
	}
}
