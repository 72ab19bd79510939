// SPDX-License-Identifier: Apache-2.0

// Package node is the node plugin: CSI's Identity and Node services for volumes with a CSI
// source of ours. It maps images with Linux's rbd driver, and formats, mounts and grows
// what is on them. It asks nothing of the API server: kubelet hands it all that it needs.
//
// Nothing is kept between calls, neither in memory nor in files: which volume is mapped
// and mounted is read from the kernel each time, by the volume's handle. So a plugin that
// dies at any moment is replaced by one that goes on where it stopped.
package node

import (
	"cmp"
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"k8s.io/mount-utils"
	"k8s.io/utils/exec"

	"ceph.com/rbd-provisioner/provisioner/krbd"
	"ceph.com/rbd-provisioner/provisioner/monitors"
	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// Kernel maps images; *krbd.Driver is one.
type Kernel interface {
	// Devices returns all mapped images of this machine, ours or not.
	Devices() ([]krbd.Device, error)
	// Map maps an image. Its errors are those of package krbd.
	Map(ctx context.Context, r krbd.Request) (krbd.Device, error)
	// Unmap ends a device. It is no error if there is none with that number.
	Unmap(ctx context.Context, id int) error
}

// Config has what a Server works with. All of it must be set, but for what says otherwise.
type Config struct {
	// NodeID is the node's name in Kubernetes.
	NodeID string
	// Version is the program's.
	Version string

	Kernel Kernel
	// Ceph tells who watches an image.
	Ceph     rbd.Connector
	Resolver monitors.Resolver
	Mounts   Mounts
	Exec     exec.Interface

	// CephTimeout bounds each step that asks Ceph or a name server. Zero means 15 s.
	CephTimeout time.Duration
	// Deadline bounds each call, if its caller does not: below kubelet's two minutes, so
	// that our words reach the Pod's events instead of its own. Zero means 110 s.
	Deadline time.Duration
	// Observe is called after each call; nil for none.
	Observe func(method string, code codes.Code, d time.Duration)
}

const (
	defaultCephTimeout = 15 * time.Second
	defaultDeadline    = 110 * time.Second
	// answerTime is how much earlier than its caller's deadline a call ends, so that the
	// answer arrives.
	answerTime = 2 * time.Second
)

// Server implements CSI's Identity and Node services. It is safe for concurrent use. New
// makes one.
type Server struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedNodeServer

	cfg        Config
	formatter  *mount.SafeFormatAndMount
	operations operations
	probes     probes
	host       host
	// mapped is how many devices there were when they were last looked at.
	mapped atomic.Int64
}

var (
	_ csi.IdentityServer = (*Server)(nil)
	_ csi.NodeServer     = (*Server)(nil)
)

// New returns a Server. The error says what is missing.
func New(cfg Config) (*Server, error) {
	switch {
	case cfg.NodeID == "":
		return nil, errors.New("the node's name is not known")
	case len(cfg.NodeID) > maxNodeID:
		return nil, errors.New("the node's name is longer than CSI allows")
	case cfg.Kernel == nil, cfg.Ceph == nil, cfg.Resolver == nil, cfg.Mounts == nil, cfg.Exec == nil:
		return nil, errors.New("a part of the node plugin is missing")
	case cfg.CephTimeout < 0, cfg.Deadline < 0:
		return nil, errors.New("the node plugin's timeouts must not be negative")
	}
	cfg.CephTimeout = cmp.Or(cfg.CephTimeout, defaultCephTimeout)
	cfg.Deadline = cmp.Or(cfg.Deadline, defaultDeadline)
	if cfg.Observe == nil {
		cfg.Observe = func(string, codes.Code, time.Duration) {}
	}
	return &Server{
		cfg:        cfg,
		formatter:  mount.NewSafeFormatAndMount(cfg.Mounts, cfg.Exec),
		operations: operations{running: map[string]*operation{}},
		probes:     probes{running: map[string]*probe{}},
		host:       system(),
	}, nil
}

// maxNodeID is how long a node's name may be in CSI.
const maxNodeID = 256

// capVolumeCondition is what kubelet up to 1.36 asks for. The newer CSI has
// GET_VOLUME_HEALTH in its place, and no name for this number any more.
const capVolumeCondition csi.NodeServiceCapability_RPC_Type = 4

// NodeGetCapabilities implements csi.NodeServer. kubelet asks several times for each Pod.
func (s *Server) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	response := &csi.NodeGetCapabilitiesResponse{}
	for _, c := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		capVolumeCondition,
	} {
		response.Capabilities = append(response.Capabilities, &csi.NodeServiceCapability{
			Type: &csi.NodeServiceCapability_Rpc{Rpc: &csi.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return response, nil
}

// NodeGetInfo implements csi.NodeServer. There is no limit of volumes, and no topology:
// every node reaches every image.
func (s *Server) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: s.cfg.NodeID}, nil
}

// Mapped returns how many images were mapped when the plugin last looked. It does not
// look itself: the kernel may not answer while Ceph does not.
func (s *Server) Mapped() int { return int(s.mapped.Load()) }
