// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/test/node/fixture"
)

// leftOut are the tests that csi-sanity skips, by what their names begin with, as they are
// about what the plugin does not say that it can.
var leftOut = map[string]string{
	"Node Service NodeGetStorageHealth": "Ceph reports on itself",
}

// sanityTests is how many tests csi-test v5.6.0 has for Identity and Node.
const sanityTests = 30

// TestSanity runs the tests of Kubernetes's project csi-test against the plugin, which kubelet
// uses meanwhile, with file systems and with block volumes.
func TestSanity(t *testing.T) {
	t.Parallel()
	f := suite.New(t, nil)
	onNode, _ := program(f, "sanity")
	key, err := suite.Rig.Ceph.Key(t.Context(), f.Name+"-user")
	f.Must(err)
	folder := "/var/lib/kubelet/" + f.Name
	_, err = suite.OnNode(t.Context(), "", "mkdir /proc/1/root"+folder)
	f.Must(err)
	for _, access := range []string{"mount", "block"} {
		t.Run(access, func(t *testing.T) {
			config, err := json.Marshal(map[string]any{
				"Plugin":     "unix://" + pluginSocket,
				"Controller": "dns:///" + serveController(f),
				"Folder":     folder,
				"AccessType": access,
				"SizeBytes":  64 << 20,
				"Secret":     map[string]string{"key": key},
				"Handle":     volume.CSIHandle(suite.Rig.Ceph.FSID, f.Name, "image-"),
			})
			f.Must(err)
			// The program sees the node's files as kubelet does.
			out, err := suite.OnNode(t.Context(), string(config), "chroot /proc/1/root "+onNode+" 3>&1 >/proc/1/root/dev/console 2>&1")
			f.Must(err)
			checkResults(t, out)
		})
	}
	// Nothing may be left in it.
	_, err = suite.OnNode(t.Context(), "", "rmdir /proc/1/root"+folder+"; rm /proc/1/root"+onNode)
	f.Must(err)
}

// pluginSocket is where kubelet finds the plugin.
const pluginSocket = "/var/lib/kubelet/plugins/" + volume.CSIDriver + "/csi.sock"

// checkResults makes a subtest of each test.
func checkResults(t *testing.T, out string) {
	n := 0
	for decoder := json.NewDecoder(strings.NewReader(out)); ; n++ {
		var result struct{ Name, State, Why string }
		if err := decoder.Decode(&result); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		if result.State == "skipped" && isLeftOut(result.Name) {
			continue
		}
		t.Run(result.Name, func(t *testing.T) {
			if result.State != "passed" {
				t.Errorf("%s: %s", result.State, result.Why)
			}
		})
	}
	if n != sanityTests {
		t.Errorf("csi-sanity has told of %d tests, want %d: %s", n, sanityTests, out)
	}
}

func isLeftOut(name string) bool {
	for prefix := range leftOut {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// controller makes images, in the place of our provisioner, which has no CSI.
type controller struct {
	csi.UnimplementedControllerServer
	csi.UnimplementedIdentityServer
	f *fixture.Fixture

	mu     sync.Mutex        // guards images
	images map[string]string // POOL/IMAGE by handle
}

// serveController returns the address of a controller, which stops with the test.
func serveController(f *fixture.Fixture) string {
	f.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(suite.Rig.Address, "0"))
	f.Must(err)
	server := grpc.NewServer()
	c := &controller{f: f, images: map[string]string{}}
	csi.RegisterControllerServer(server, c)
	csi.RegisterIdentityServer(server, c)
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := server.Serve(listener); err != nil {
			f.Errorf("serve volumes: %v", err)
		}
	})
	f.Cleanup(func() {
		server.Stop()
		ended.Wait()
	})
	return listener.Addr().String()
}

func (c *controller) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: volume.CSIDriver}, nil
}

func (c *controller) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return &csi.GetPluginCapabilitiesResponse{}, nil
}

func (c *controller) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (c *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	response := &csi.ControllerGetCapabilitiesResponse{}
	for _, can := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, csi.ControllerServiceCapability_RPC_EXPAND_VOLUME,
	} {
		response.Capabilities = append(response.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: can}},
		})
	}
	return response, nil
}

func (c *controller) CreateVolume(ctx context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	size := r.GetCapacityRange().GetRequiredBytes()
	handle := volume.CSIHandle(suite.Rig.Ceph.FSID, c.f.Name, r.GetName())
	c.mu.Lock()
	c.images[handle] = c.f.Name + "/" + r.GetName()
	c.mu.Unlock()
	if err := c.rbd(ctx, handle, "create", "--size", bytesOf(size), "--image-feature", "layering"); err != nil {
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: handle, CapacityBytes: size,
		VolumeContext: map[string]string{
			volume.AttrMonitors: "v1:" + suite.Rig.Ceph.MonitorV1,
			volume.AttrPool:     c.f.Name,
			volume.AttrImage:    r.GetName(),
			volume.AttrUser:     c.f.Name + "-user",
		},
	}}, nil
}

func (c *controller) ControllerExpandVolume(ctx context.Context, r *csi.ControllerExpandVolumeRequest) (*csi.ControllerExpandVolumeResponse, error) {
	size := r.GetCapacityRange().GetRequiredBytes()
	if err := c.rbd(ctx, r.GetVolumeId(), "resize", "--no-progress", "--size", bytesOf(size)); err != nil {
		return nil, err
	}
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: size, NodeExpansionRequired: true}, nil
}

// DeleteVolume fails for an image that is still mapped.
func (c *controller) DeleteVolume(ctx context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := c.rbd(ctx, r.GetVolumeId(), "rm", "--no-progress"); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// rbd runs a command of rbd for a volume.
func (c *controller) rbd(ctx context.Context, handle, command string, args ...string) error {
	c.mu.Lock()
	image, found := c.images[handle]
	c.mu.Unlock()
	if !found {
		return status.Errorf(codes.NotFound, "no volume %q was made here", handle)
	}
	if _, err := suite.Rig.Ceph.Run(ctx, "rbd", slices.Concat([]string{command, image}, args)...); err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return nil
}

// bytesOf is a size as rbd takes it.
func bytesOf(n int64) string { return strconv.FormatInt(n, 10) + "B" }
