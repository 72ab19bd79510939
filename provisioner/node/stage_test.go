// SPDX-License-Identifier: Apache-2.0

package node

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"k8s.io/mount-utils"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// What kubelet's request must have, each with what the Pod's event says without it.
func TestStageRequests(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*csi.NodeStageVolumeRequest)
		says   []string
	}{
		"no handle":       {func(r *csi.NodeStageVolumeRequest) { r.VolumeId = "" }, []string{"volume_id"}},
		"no staging path": {func(r *csi.NodeStageVolumeRequest) { r.StagingTargetPath = "" }, []string{"staging_target_path"}},
		"no capability":   {func(r *csi.NodeStageVolumeRequest) { r.VolumeCapability = nil }, []string{"neither block nor mount"}},
		"many writers of a file system": {func(r *csi.NodeStageVolumeRequest) { r.VolumeCapability = fileSystem("", writers) },
			[]string{"volumeMode Block"}},
		"a mode of CSI that Kubernetes has not": {func(r *csi.NodeStageVolumeRequest) {
			r.VolumeCapability = fileSystem("", csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER)
		}, []string{"MULTI_NODE_SINGLE_WRITER"}},
		"unknown file system": {func(r *csi.NodeStageVolumeRequest) { r.VolumeCapability = fileSystem("btrfs", writer) },
			[]string{`"btrfs"`, "ext3, ext4, xfs"}},
		"no pool":         {func(r *csi.NodeStageVolumeRequest) { delete(r.VolumeContext, "pool") }, []string{`no "pool"`}},
		"no image":        {func(r *csi.NodeStageVolumeRequest) { delete(r.VolumeContext, "image") }, []string{`no "image"`}},
		"no user":         {func(r *csi.NodeStageVolumeRequest) { delete(r.VolumeContext, "user") }, []string{`no "user"`}},
		"no monitors":     {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext["monitors"] = " " }, []string{`no "monitors"`}},
		"wrong monitors":  {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext["monitors"] = "a:b,c:d" }, []string{`"monitors"`, `"a:b"`, `"c:d"`}},
		"a comma in user": {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext["user"] = "kube,ro" }, []string{`"user"`}},
		"a blank in pool": {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext["pool"] = "a b" }, []string{`"pool"`}},
		"unknown option": {func(r *csi.NodeStageVolumeRequest) { r.VolumeContext["mapOptions"] = "exclusive" },
			[]string{`"mapOptions"`, "exclusive"}},
		"a handle of one's own": {func(r *csi.NodeStageVolumeRequest) { r.VolumeId = "my-volume" },
			[]string{`"my-volume"`, `must be "FSID/rbd/` + testImage + `"`, "ceph fsid"}},
		"another image's handle": {func(r *csi.NodeStageVolumeRequest) { r.VolumeId += "2" }, []string{"FSID/rbd/" + testImage}},
		"no key":                 {func(r *csi.NodeStageVolumeRequest) { r.Secrets = nil }, []string{"nodeStageSecretRef", "ceph auth get-key client.kube"}},
		"half a key": {func(r *csi.NodeStageVolumeRequest) { r.Secrets["key"] = r.Secrets["key"][:20] },
			[]string{"nodeStageSecretRef", "malformed key", "ceph auth get-key client.kube"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			r := w.stageRequest()
			test.change(r)
			_, err := w.server.NodeStageVolume(t.Context(), r)
			w.refused(err, codes.InvalidArgument, test.says...)
			w.clean()
		})
	}
}

// What Ceph and the kernel may answer.
func TestStageFailures(t *testing.T) {
	for name, test := range map[string]struct {
		setUp func(*world)
		code  codes.Code
		says  []string
	}{
		"unknown user": {func(w *world) { w.cluster.RemoveUser(testUser) }, codes.PermissionDenied,
			[]string{`"kube"`, "rbd/" + testImage, "ceph auth get-key client.kube", "profile rbd pool=rbd", "nodeStageSecretRef"}},
		"no monitor":      {func(w *world) { w.cluster.SetUnreachable(true) }, codes.Unavailable, []string{"ceph -s", "10.77.0.1"}},
		"no pool":         {func(w *world) { w.cluster.RemovePool(testPool) }, codes.NotFound, []string{"rbd ls rbd"}},
		"a silent OSD":    {func(w *world) { w.cluster.Fake(rbdtest.FakeFault{Call: rbdtest.CallOpenPool, Err: rbd.ErrTimeout}) }, codes.Unavailable, []string{"OSDs are up"}},
		"no name":         {func(w *world) { w.attributes["monitors"] = "ceph.invalid" }, codes.Unavailable, []string{"ceph.invalid", "name server"}},
		"v2 monitors":     {func(w *world) { w.attributes["monitors"] = "10.77.0.1:3300" }, codes.FailedPrecondition, []string{"protocol v1", "ms_mode=prefer-crc"}},
		"v1 monitors":     {func(w *world) { w.attributes["mapOptions"] = "ms_mode=secure" }, codes.FailedPrecondition, []string{"protocol v2", "3300"}},
		"denied":          {func(w *world) { w.node.mapErr = fmt.Errorf("map: %w", krbd.ErrDenied) }, codes.PermissionDenied, []string{"node-1", "map: "}},
		"caps":            {func(w *world) { w.node.mapErr = krbd.ErrCaps }, codes.PermissionDenied, nil},
		"gone":            {func(w *world) { w.node.mapErr = krbd.ErrNotFound }, codes.NotFound, nil},
		"away":            {func(w *world) { w.node.mapErr = krbd.ErrUnreachable }, codes.Unavailable, nil},
		"old kernel":      {func(w *world) { w.node.mapErr = krbd.ErrInvalid }, codes.FailedPrecondition, nil},
		"no driver":       {func(w *world) { w.node.listErr = krbd.ErrNoDriver; w.node.mapErr = krbd.ErrNoDriver }, codes.FailedPrecondition, []string{"node-1", "modprobe rbd"}},
		"other cluster":   {func(w *world) { w.handle = volume.CSIHandle("another-fsid", testPool, testImage) }, codes.InvalidArgument, []string{"another-fsid", "FSID-OF-THE-CLUSTER"}},
		"other content":   {func(w *world) { w.image.fsType = xfs }, codes.FailedPrecondition, []string{"holds xfs", "have ext4", "no data are lost"}},
		"unknown content": {func(w *world) { w.image.fsType = "crypto_LUKS" }, codes.FailedPrecondition, []string{"crypto_LUKS"}},
		"unknown content, no type asked": {func(w *world) { w.capability = fileSystem("", writer); w.image.fsType = "ntfs" },
			codes.FailedPrecondition, []string{"ntfs"}},
		"nothing to read": {func(w *world) { w.capability = fileSystem(ext4, readers) }, codes.FailedPrecondition, []string{"no file system", "ReadWriteOnce"}},
		"watched": {func(w *world) { w.cluster.Watch(testPool, testImage, "10.0.0.5:0/123") }, codes.FailedPrecondition,
			[]string{"rbd/" + testImage, "10.0.0.5:0/123", "node-1", "ceph osd blocklist add 10.0.0.5:0/123"}},
		"watched block": {func(w *world) { w.capability = block(writer); w.cluster.Watch(testPool, testImage, "10.0.0.5:0/123") },
			codes.FailedPrecondition, []string{"10.0.0.5:0/123"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			test.setUp(w)
			var says []string
			for _, text := range test.says {
				says = append(says, strings.ReplaceAll(text, "FSID-OF-THE-CLUSTER", w.cluster.FSID()))
			}
			w.refused(w.stage(t.Context()), test.code, says...)
			w.node.listErr = nil
			w.clean()
			if w.image.made > 0 {
				t.Error("made a file system")
			}
		})
	}
}

// What the driver is told.
func TestMapRequest(t *testing.T) {
	w := newWorld(t)
	w.attributes["monitors"] = "v2:10.77.0.1:3300, 10.77.0.1:6789, [2001:db8::1]:3300"
	w.attributes["mapOptions"] = "ms_mode=prefer-crc,queue_depth=64"
	w.must(w.stage(t.Context()))
	options, err := volume.ParseMapOptions("ms_mode=prefer-crc,queue_depth=64")
	w.must(err)
	got := w.node.requests[0]
	if !got.Key.Equal(w.creds.Key) {
		t.Error("it was given another key")
	}
	want := krbd.Request{FSID: w.cluster.FSID(), Monitors: []string{"10.77.0.1:3300", "[2001:db8::1]:3300"}, User: testUser, Key: got.Key,
		Pool: testPool, Image: testImage, Options: options}
	if diff := cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got)); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	if w.server.Mapped() != 1 {
		t.Errorf("got %d mapped images", w.server.Mapped())
	}
}

func TestMountOptions(t *testing.T) {
	for name, test := range map[string]struct {
		capability *csi.VolumeCapability
		content    string
		want       []string
	}{
		"ext4":            {fileSystem(ext4, writer, "noatime"), "", []string{"noatime"}},
		"xfs":             {fileSystem(xfs, writer), "", []string{"nouuid"}},
		"xfs, given":      {fileSystem(xfs, writer, "nouuid"), "", []string{"nouuid"}},
		"ext4 to read":    {fileSystem(ext4, readers, "rw"), ext4, []string{"ro", "noload"}},
		"xfs to read":     {fileSystem(xfs, readers), xfs, []string{"nouuid", "ro", "norecovery"}},
		"no type to read": {fileSystem("", readers), xfs, []string{"nouuid", "ro", "norecovery"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.capability, w.image.fsType = test.capability, test.content
			w.must(w.stage(t.Context()))
			if diff := cmp.Diff(test.want, w.node.options[0]); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

// A clone that is larger than its source gets a file system of its own size; one just made
// has it.
func TestGrownWhenStaged(t *testing.T) {
	w := newWorld(t)
	w.image.fsType, w.image.fsSize = ext4, gib/2
	w.must(w.stage(t.Context()))
	if w.image.fsSize != gib || !slices.Contains(w.node.did, "grow") {
		t.Errorf("got a file system of %d bytes", w.image.fsSize)
	}
	w = newWorld(t)
	w.must(w.stage(t.Context()))
	if slices.Contains(w.node.did, "grow") {
		t.Error("grew a new file system")
	}
}

// A volume's access mode may change between two Pods.
func TestOtherAccessMode(t *testing.T) {
	w := newWorld(t)
	w.must(w.stage(t.Context()))
	w.capability = fileSystem(ext4, readers)
	// The former is in use.
	w.refused(w.stage(t.Context()), codes.Unavailable, "/dev/rbd0", w.staging)
	w.node.mounts = nil
	w.must(w.stage(t.Context()))
	if devices, _ := w.node.Devices(); len(devices) != 1 || !devices[0].ReadOnly {
		t.Errorf("got %+v", devices)
	}
}

// Devices that look like the volume's and are not: of another cluster, of a RADOS
// namespace, of a snapshot.
func TestOthersDevices(t *testing.T) {
	w := newWorld(t)
	ours := krbd.Device{FSID: w.cluster.FSID(), Pool: testPool, Image: testImage, Major: 252, Ours: true}
	w.node.devices = map[int]krbd.Device{0: ours, 1: ours, 2: ours}
	for id, change := range map[int]func(*krbd.Device){
		0: func(d *krbd.Device) { d.FSID = "other" }, 1: func(d *krbd.Device) { d.Namespace = "ns" }, 2: func(d *krbd.Device) { d.Snapshot = "snap" },
	} {
		d := w.node.devices[id]
		change(&d)
		d.ID, d.Minor = id, uint32(id)*16
		w.node.devices[id] = d
	}
	w.must(w.stage(t.Context()))
	w.must(w.unstage(t.Context()))
	if devices, _ := w.node.Devices(); len(devices) != 3 {
		t.Errorf("got %+v", devices)
	}
}

// Nothing is taken from a Pod.
func TestUnstageInUse(t *testing.T) {
	for name, capability := range map[string]*csi.VolumeCapability{"file system": fileSystem(ext4, writer), "block": block(writer)} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.capability = capability
			w.must(w.stage(t.Context()))
			w.must(w.publish(t.Context()))
			w.refused(w.unstage(t.Context()), codes.FailedPrecondition, "/dev/rbd0", "rbd/"+testImage, w.target, "node-1", "will retry")
			w.checkPublished()
			w.must(w.unpublish(t.Context()))
			w.node.unmapErr = fmt.Errorf("unmap /dev/rbd0: %w", krbd.ErrBusy)
			w.refused(w.unstage(t.Context()), codes.FailedPrecondition, "/dev/rbd0", "in use")
			w.node.unmapErr = nil
			w.must(w.unstage(t.Context()))
			w.must(w.unstage(t.Context()))
			w.clean()
		})
	}
}

// A plugin that mounted twice, and a device that was unmapped by force.
func TestOddMounts(t *testing.T) {
	w := newWorld(t)
	w.must(w.stage(t.Context()))
	w.node.mounts = append(w.node.mounts, w.node.mounts[0])
	w.must(w.unstage(t.Context()))
	w.clean()

	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	w.node.loseDevices()
	w.node.devices[0] = krbd.Device{Image: "other", Pool: testPool, Major: 252} // its number is taken
	for i := range w.node.mounts {
		w.node.mounts[i].Minor = 160
	}
	w.refused(w.stage(t.Context()), codes.FailedPrecondition, "another device's file system", w.target, "delete the Pods")
	w.must(w.unpublish(t.Context()))
	w.must(w.stage(t.Context()))
	w.must(w.publish(t.Context()))
	w.checkPublished()
}

func TestTableEscapes(t *testing.T) {
	path := "/a b\tc\nd\\e"
	mounts := table{{MountPoint: `/a\040b\011c\012d\134e`, Source: "first"}, {MountPoint: `/a\040b\011c\012d\134e`, Source: "second"}}
	if m, found := mounts.at(path + "/"); !found || m.Source != "second" {
		t.Errorf("got %v, %t", m, found)
	}
	gone := mount.MountInfo{FsType: "devtmpfs", Root: "/rbd0//deleted"}
	if isFile(gone, krbd.Device{}) {
		t.Error("took the file of a device that is gone for that of its successor")
	}
}

// A staging path that kubelet has not made is made.
func TestStagingPathIsMade(t *testing.T) {
	w := newWorld(t)
	w.must(os.Remove(w.staging))
	w.must(w.stage(t.Context()))
	w.must(w.unstage(t.Context()))
	if _, err := os.Stat(w.staging); err != nil {
		t.Errorf("kubelet's folder: %v", err)
	}
}
