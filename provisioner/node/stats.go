// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/mount-utils"

	"ceph.com/rbd-provisioner/provisioner/krbd"
)

// probeTimeout is how long a look at a volume may take. kubelet looks once a minute.
const probeTimeout = 10 * time.Second

// probes are looks at volumes, at most one for each: a look at what hangs may last for
// ever, and the next one joins it.
type probes struct {
	mu      sync.Mutex        // guards running
	running map[string]*probe // by the volume's handle
}

// probe is a look at a volume. Its results are final once done is closed.
type probe struct {
	done chan struct{}

	device krbd.Device
	found  bool
	sizes  unix.Statfs_t
	// deviceErr and sizesErr are why the device, or the file system, could not be read.
	deviceErr, sizesErr error
	err                 error
}

// look looks at a volume, and at the file system that is mounted at path, if that is not
// empty. It returns false if that takes too long.
func (s *Server) look(ctx context.Context, handle, path string) (*probe, bool) {
	s.probes.mu.Lock()
	p := s.probes.running[handle]
	if p == nil {
		p = &probe{done: make(chan struct{})}
		s.probes.running[handle] = p
		go func() {
			defer func() {
				s.probes.mu.Lock()
				defer s.probes.mu.Unlock()
				delete(s.probes.running, handle)
				close(p.done)
			}()
			p.err = recovered(ctx, func() error { return s.probe(p, handle, path) })
		}()
	}
	s.probes.mu.Unlock()
	select {
	case <-p.done:
		return p, true
	case <-ctx.Done():
		return nil, false
	}
}

func (s *Server) probe(p *probe, handle, path string) (err error) {
	if p.device, p.found, err = s.device(handle); err != nil || !p.found {
		return err
	}
	// The file system's sizes come from memory. Only the device tells whether Ceph answers.
	_, p.deviceErr = s.host.readDevice(p.device.Path(), blockSize)
	if path != "" && p.deviceErr == nil {
		p.sizes, p.sizesErr = s.host.statfs(path)
	}
	return nil
}

// NodeGetVolumeStats implements csi.NodeServer. It answers while Ceph does not, with the
// condition alone.
func (s *Server) NodeGetVolumeStats(ctx context.Context, r *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	handle, path := r.GetVolumeId(), r.GetVolumePath()
	if err := checkNamed("volume_id", handle, "volume_path", path); err != nil {
		return nil, err
	}
	mounts, err := s.table()
	if err != nil {
		return nil, err
	}
	m, mounted := mounts.at(path)
	if !mounted {
		return nil, status.Errorf(codes.NotFound, "volume %q is not mounted at %s on node %s", handle, path, s.cfg.NodeID)
	}
	// Not of a device: m may be the mount of one that is gone.
	isBlock := m.FsType == "devtmpfs"
	p, condition, err := s.condition(ctx, handle, path, isBlock, mounts)
	if err != nil {
		return nil, err
	}
	response := &csi.NodeGetVolumeStatsResponse{}
	if p != nil && len(condition) == 0 || p != nil && condition.isReadOnly() {
		response.Usage = p.usage(isBlock)
	}
	condition.writeTo(response)
	return response, nil
}

// NodeGetVolumeHealth implements csi.NodeServer: the condition without sizes.
func (s *Server) NodeGetVolumeHealth(ctx context.Context, r *csi.NodeGetVolumeHealthRequest) (*csi.NodeGetVolumeHealthResponse, error) {
	handle := r.GetVolumeId()
	if err := checkNamed("volume_id", handle); err != nil {
		return nil, err
	}
	mounts, err := s.table()
	if err != nil {
		return nil, err
	}
	path, isBlock := "", true
	for _, candidate := range []string{r.GetVolumePublishPath(), r.GetStagingTargetPath()} {
		if m, mounted := mounts.at(candidate); mounted && candidate != "" {
			path, isBlock = candidate, m.FsType == "devtmpfs"
			break
		}
	}
	p, condition, err := s.condition(ctx, handle, path, isBlock, mounts)
	if err != nil {
		return nil, err
	}
	if p != nil && !p.found && path == "" {
		return nil, status.Errorf(codes.NotFound, "volume %q is not mapped on node %s", handle, s.cfg.NodeID)
	}
	return &csi.NodeGetVolumeHealthResponse{VolumeHealth: &csi.VolumeHealth{VolumeId: handle, HealthStatuses: condition}}, nil
}

// condition is what is wrong with a volume.
type condition []*csi.VolumeHealth_VolumeHealthEntry

const reasonReadOnly = "ReadOnlyFileSystem"

func wrong(how csi.VolumeHealthErrorType, reason, format string, args ...any) condition {
	return condition{{Status: how, Reason: reason, Message: fmt.Sprintf(format, args...)}}
}

func (c condition) isReadOnly() bool { return len(c) == 1 && c[0].GetReason() == reasonReadOnly }

// condition looks at a volume. The probe is nil if the look takes too long.
func (s *Server) condition(ctx context.Context, handle, path string, isBlock bool, mounts table) (*probe, condition, error) {
	ctx, cancel := s.bound(ctx, probeTimeout)
	defer cancel()
	file := path
	if isBlock {
		file = ""
	}
	p, done := s.look(ctx, handle, file)
	inaccessible := csi.VolumeHealthErrorType_INACCESSIBLE
	switch {
	case !done:
		return nil, wrong(inaccessible, "NoAnswer", "Ceph does not answer for volume %q on node %s; %s", handle, s.cfg.NodeID, hungHint), nil
	case p.err != nil:
		return nil, nil, p.err
	case !p.found:
		return p, wrong(inaccessible, "NoDevice", "the device of volume %q is gone from node %s: delete the Pods that use it, and they start anew", handle, s.cfg.NodeID), nil
	case p.deviceErr != nil:
		return p, wrong(inaccessible, "ReadError", "%s of volume %q on node %s can't be read: %s; see the node's kernel log", p.device.Path(), handle, s.cfg.NodeID, oneLine(p.deviceErr)), nil
	case p.sizesErr != nil:
		return p, wrong(inaccessible, "FileSystemError", "the file system of volume %q on node %s: %s; see the node's kernel log", handle, s.cfg.NodeID, oneLine(p.sizesErr)), nil
	case isRemountedReadOnly(mounts, p.device):
		return p, wrong(csi.VolumeHealthErrorType_DEGRADED, reasonReadOnly, "the file system of volume %q on node %s allows no writes after an error: "+
			"see the node's kernel log, and delete the Pods that use it: it is checked before the next one starts", handle, s.cfg.NodeID), nil
	}
	return p, nil, nil
}

// isRemountedReadOnly reports whether a file system stopped writing by itself: it was
// mounted to be written to somewhere, and as a whole it is read-only, or worse.
func isRemountedReadOnly(mounts table, d krbd.Device) bool {
	return slices.ContainsFunc(mounts, func(m mount.MountInfo) bool {
		return isFileSystem(m, d) && slices.Contains(m.MountOptions, "rw") && slices.ContainsFunc(m.SuperOptions, func(option string) bool {
			// "emergency_ro" since Linux 6.14, "shutdown" since 6.15.
			return option == "ro" || option == "emergency_ro" || option == "shutdown"
		})
	})
}

// usage returns the sizes that a probe found.
func (p *probe) usage(isBlock bool) []*csi.VolumeUsage {
	if isBlock {
		return []*csi.VolumeUsage{{Unit: csi.VolumeUsage_BYTES, Total: int64(p.device.SizeBytes)}} //nolint:gosec // no image is that large
	}
	unit := p.sizes.Bsize
	//nolint:gosec // no file system is that large
	return []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: int64(p.sizes.Blocks) * unit, Available: int64(p.sizes.Bavail) * unit,
			Used: int64(p.sizes.Blocks-p.sizes.Bfree) * unit},
		{Unit: csi.VolumeUsage_INODES, Total: int64(p.sizes.Files), Available: int64(p.sizes.Ffree),
			Used: int64(p.sizes.Files - p.sizes.Ffree)},
	}
}

// The message VolumeCondition, which kubelet up to 1.36 reads, and which later versions
// of CSI left out. Source: csi.proto of CSI 1.9.
const (
	fieldVolumeCondition = 2 // of NodeGetVolumeStatsResponse
	fieldAbnormal        = 1
	fieldMessage         = 2
)

// writeTo adds the condition in its older form.
func (c condition) writeTo(r *csi.NodeGetVolumeStatsResponse) {
	message, abnormal := "the volume is healthy", uint64(0)
	if len(c) > 0 {
		message, abnormal = c[0].GetMessage(), 1
	}
	var body []byte
	body = protowire.AppendTag(body, fieldAbnormal, protowire.VarintType)
	body = protowire.AppendVarint(body, abnormal)
	body = protowire.AppendTag(body, fieldMessage, protowire.BytesType)
	body = protowire.AppendString(body, message)
	var field []byte
	field = protowire.AppendTag(field, fieldVolumeCondition, protowire.BytesType)
	field = protowire.AppendBytes(field, body)
	r.ProtoReflect().SetUnknown(field)
}
