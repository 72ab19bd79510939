// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/mount-utils"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	testPool  = "rbd"
	testImage = "kubernetes-dynamic-pvc-1"
	testUser  = "kube"
	gib       = 1 << 30

	writer       = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	singleWriter = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	readers      = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	writers      = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
)

// world is a node, a Ceph cluster with one image, and a volume of it.
type world struct {
	*testing.T
	node    *FakeNode
	cluster *rbdtest.Cluster
	server  *Server
	image   *FakeImage
	creds   rbd.Credentials

	handle          string
	attributes      map[string]string
	capability      *csi.VolumeCapability
	staging, target string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{T: t, node: newFakeNode(t), cluster: rbdtest.NewCluster("10.77.0.1:6789")}
	w.cluster.AddPool(testPool)
	w.node.watch = w.cluster.Watch
	w.creds = w.cluster.AddUser(testUser, rbdtest.Caps{Pools: []string{testPool}})
	w.makeImage(testImage)
	w.handle = volume.CSIHandle(w.cluster.FSID(), testPool, testImage)
	w.image = &FakeImage{size: gib}
	w.node.images[w.handle] = w.image
	w.attributes = map[string]string{
		volume.AttrMonitors: strings.Join(w.cluster.Monitors(), ","), volume.AttrPool: testPool,
		volume.AttrImage: testImage, volume.AttrUser: testUser,
	}
	w.capability = fileSystem(ext4, writer)
	dir := t.TempDir()
	w.staging, w.target = filepath.Join(dir, "globalmount"), filepath.Join(dir, "pods", "1", "mount")
	if err := os.MkdirAll(w.staging, 0o700); err != nil {
		t.Fatal(err)
	}
	w.start()
	return w
}

func (w *world) makeImage(name string) {
	w.Helper()
	ctx := w.Context()
	cluster, err := w.cluster.Connect(ctx, w.creds)
	if err != nil {
		w.Fatal(err)
	}
	defer cluster.Close()
	pool, err := cluster.OpenPool(ctx, testPool)
	if err != nil {
		w.Fatal(err)
	}
	defer pool.Close()
	if err := pool.CreateImage(ctx, name, rbd.ImageSpec{SizeBytes: gib}); err != nil {
		w.Fatal(err)
	}
}

// start replaces the plugin.
func (w *world) start() {
	w.Helper()
	w.node.restart()
	server, err := New(Config{
		NodeID: "node-1", Version: "test", Kernel: w.node, Ceph: w.cluster, Resolver: FakeResolver{}, Mounts: w.node, Exec: w.node,
	})
	if err != nil {
		w.Fatal(err)
	}
	server.host = w.node.host()
	w.server = server
}

func fileSystem(fsType string, mode csi.VolumeCapability_AccessMode_Mode, flags ...string) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: fsType, MountFlags: flags}},
	}
}

func block(mode csi.VolumeCapability_AccessMode_Mode) *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode},
		AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
	}
}

func (w *world) stageRequest() *csi.NodeStageVolumeRequest {
	return &csi.NodeStageVolumeRequest{
		VolumeId: w.handle, StagingTargetPath: w.staging, VolumeCapability: w.capability,
		VolumeContext: maps.Clone(w.attributes), Secrets: map[string]string{"key": w.creds.Key.Reveal() + "\n"},
	}
}

func (w *world) stage(ctx context.Context) error {
	_, err := w.server.NodeStageVolume(ctx, w.stageRequest())
	return err
}

func (w *world) unstage(ctx context.Context) error {
	_, err := w.server.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: w.handle, StagingTargetPath: w.staging})
	return err
}

func (w *world) publishAt(ctx context.Context, target string, readOnly bool) error {
	_, err := w.server.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: w.handle, StagingTargetPath: w.staging, TargetPath: target, VolumeCapability: w.capability, Readonly: readOnly,
	})
	return err
}

func (w *world) publish(ctx context.Context) error { return w.publishAt(ctx, w.target, false) }

func (w *world) unpublish(ctx context.Context) error {
	_, err := w.server.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: w.handle, TargetPath: w.target})
	return err
}

func (w *world) expand(ctx context.Context, sizeBytes int64) error {
	_, err := w.server.NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: w.handle, VolumePath: w.target, StagingTargetPath: w.staging, CapacityRange: &csi.CapacityRange{RequiredBytes: sizeBytes},
	})
	return err
}

// must ends the test if a call failed.
func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// refused checks an error: its code and what it says. No error has two lines, or a key.
func (w *world) refused(err error, code codes.Code, says ...string) {
	w.Helper()
	text := ""
	if err != nil {
		text = err.Error()
	}
	if status.Code(err) != code {
		w.Errorf("got %s (%s), want %s", status.Code(err), text, code)
	}
	for _, want := range says {
		if !strings.Contains(text, want) {
			w.Errorf("got %q, want it to say %q", text, want)
		}
	}
	if strings.Contains(text, "\n") || strings.Contains(text, w.creds.Key.Reveal()) {
		w.Errorf("%q has two lines, or the key", text)
	}
}

// clean checks that nothing is mapped or mounted, and the target path is gone.
func (w *world) clean() {
	w.Helper()
	devices, _ := w.node.Devices()
	mounts, _ := w.node.Table()
	if len(devices) > 0 || len(mounts) > 0 {
		w.Errorf("left: devices %v, mounts %v", devices, paths(mounts))
	}
	if _, err := os.Lstat(w.target); err == nil {
		w.Error("left: the target path")
	}
	if open := w.cluster.Open(); open != 0 {
		w.Errorf("left: %d connections and pools", open)
	}
}

// mountAt returns what is mounted at a path.
func (w *world) mountAt(path string) (m mount.MountInfo, mounted bool) {
	mounts, _ := w.node.Table()
	return table(mounts).at(path)
}
