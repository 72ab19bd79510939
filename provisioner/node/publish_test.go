// SPDX-License-Identifier: Apache-2.0

package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

func TestPublishRequests(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*csi.NodePublishVolumeRequest)
		says   string
	}{
		"no handle":       {func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" }, "volume_id"},
		"no target path":  {func(r *csi.NodePublishVolumeRequest) { r.TargetPath = "" }, "target_path"},
		"no staging path": {func(r *csi.NodePublishVolumeRequest) { r.StagingTargetPath = "" }, "staging_target_path"},
		"no capability":   {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, "neither block nor mount"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := &csi.NodePublishVolumeRequest{VolumeId: w.handle, TargetPath: w.target, StagingTargetPath: w.staging, VolumeCapability: w.capability}
			test.change(r)
			_, err := w.server.NodePublishVolume(t.Context(), r)
			w.refused(err, codes.InvalidArgument, test.says)
		})
	}
}

// A volume that is not staged, or no longer, is not published: the Pod would write to the
// node's own disk.
func TestPublishUnstaged(t *testing.T) {
	w := newWorld(t)
	w.refused(w.publish(t.Context()), codes.FailedPrecondition, "not mapped on node node-1")
	w.must(w.stage(t.Context()))
	w.node.mounts = nil
	w.refused(w.publish(t.Context()), codes.FailedPrecondition, w.staging)
	if _, err := os.Stat(w.target); err == nil {
		t.Error("made the target path")
	}
}

func TestReadOnlyPod(t *testing.T) {
	w := newWorld(t)
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	reader := filepath.Join(filepath.Dir(w.target), "reader")
	w.must(w.publishAt(t.Context(), reader, true))
	if m, mounted := w.mountAt(reader); !mounted || m.MountOptions[0] != "ro" {
		t.Errorf("got %+v", m)
	}
	w.checkPublished()

	// A mount of a device's file can't keep anybody from writing.
	w = newWorld(t)
	w.capability = block(writer)
	w.must(w.stage(t.Context()))
	w.refused(w.publishAt(t.Context(), w.target, true), codes.FailedPrecondition, "ReadOnlyMany", "readOnly")
	w.capability = block(readers)
	w.must(w.unstage(t.Context()))
	w.must(w.stage(t.Context()))
	w.must(w.publishAt(t.Context(), w.target, true))
}

// A mount that is made read-only keeps what the staged mount has for itself.
func TestReadOnlyPodKeepsFlags(t *testing.T) {
	w := newWorld(t)
	w.must(w.stage(t.Context()))
	w.node.mounts[0].MountOptions = []string{"rw", "nosuid", "nodev", "noexec", "noatime", "relatime", "idmapped"}
	w.must(w.publishAt(t.Context(), w.target, true))
	m, _ := w.mountAt(w.target)
	if want := []string{"ro", "nosuid", "nodev", "noexec", "noatime"}; !slices.Equal(m.MountOptions, want) {
		t.Errorf("got %q, want %q", m.MountOptions, want)
	}
}

func TestSinglePod(t *testing.T) {
	for name, capability := range map[string]*csi.VolumeCapability{"file system": fileSystem(ext4, singleWriter), "block": block(singleWriter)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.capability = capability
			w.must(w.stage(t.Context()))
			w.must(w.publish(t.Context()))
			w.must(w.publish(t.Context()))
			second := filepath.Join(filepath.Dir(w.target), "second")
			w.refused(w.publishAt(t.Context(), second, false), codes.FailedPrecondition, "ReadWriteOncePod", w.target)
			w.must(w.unpublish(t.Context()))
			w.must(w.publishAt(t.Context(), second, false))
		})
	}
}

// What is no mount of ours is left alone, and so are a Pod's data below the target path.
func TestTargetOfOthers(t *testing.T) {
	w := newWorld(t)
	w.must(w.stage(t.Context()))
	w.node.mounts = append(w.node.mounts, table{{MountPoint: w.target, Source: "tmpfs", Major: 1}}...)
	w.refused(w.publish(t.Context()), codes.AlreadyExists, "tmpfs", w.target)
	w.must(w.unpublish(t.Context()))

	w.must(os.MkdirAll(filepath.Join(w.target, "data"), 0o700))
	w.refused(w.unpublish(t.Context()), codes.Internal, "target path")
	if _, err := os.Stat(filepath.Join(w.target, "data")); err != nil {
		t.Error(err)
	}
}

func TestUnpublishRequests(t *testing.T) {
	w := newWorld(t)
	_, err := w.server.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{TargetPath: w.target})
	w.refused(err, codes.InvalidArgument, "volume_id")
	_, err = w.server.NodeUnpublishVolume(t.Context(), &csi.NodeUnpublishVolumeRequest{VolumeId: w.handle})
	w.refused(err, codes.InvalidArgument, "target_path")
	_, err = w.server.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{StagingTargetPath: w.staging})
	w.refused(err, codes.InvalidArgument, "volume_id")
	_, err = w.server.NodeUnstageVolume(t.Context(), &csi.NodeUnstageVolumeRequest{VolumeId: w.handle})
	w.refused(err, codes.InvalidArgument, "staging_target_path")
	w.must(w.unpublish(t.Context()))
	w.must(w.unstage(t.Context()))
}
