// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// drainTimeout is how long an orderly stop waits for calls that are under way. The next
// plugin goes on with what does not end.
const drainTimeout = 20 * time.Second

// Sockets says where a plugin meets kubelet.
type Sockets struct {
	// CSI is the path of the socket for CSI's calls, KubeletCSI the same as kubelet sees it.
	CSI, KubeletCSI string
	// RegistrationDir is kubelet's folder plugins_registry.
	RegistrationDir string
}

// Plugin is a Server on its sockets. NewPlugin makes one.
type Plugin struct {
	server       *Server
	sockets      Sockets
	registration registration
}

// NewPlugin returns a Plugin that does not run yet.
func NewPlugin(server *Server, sockets Sockets) *Plugin {
	return &Plugin{server: server, sockets: sockets, registration: registration{endpoint: sockets.KubeletCSI, status: errNotRegistered}}
}

// Ready returns nil while kubelet knows the plugin.
func (p *Plugin) Ready() error { return p.registration.check() }

// Run serves until ctx ends. It returns an error only if it could not.
func (p *Plugin) Run(ctx context.Context) error {
	// First what kubelet asks once it knows the plugin.
	calls, err := listen(ctx, p.sockets.CSI)
	if err != nil {
		return err
	}
	path := filepath.Join(p.sockets.RegistrationDir, volume.CSIDriver+"-reg.sock")
	registrations, err := listen(ctx, path)
	if err != nil {
		_ = calls.Close()
		return err
	}
	csiServer, registrationServer := grpc.NewServer(p.interceptor(ctx)), grpc.NewServer(p.interceptor(ctx))
	csi.RegisterIdentityServer(csiServer, p.server)
	csi.RegisterNodeServer(csiServer, p.server)
	registerapi.RegisterRegistrationServer(registrationServer, &p.registration)

	failed := make(chan error, 2) // one for each server
	var serving sync.WaitGroup
	serving.Go(func() { failed <- csiServer.Serve(calls) })
	serving.Go(func() { failed <- registrationServer.Serve(registrations) })
	klog.FromContext(ctx).Info("Serving kubelet", "socket", p.sockets.CSI, "registration", path)
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
		err = fmt.Errorf("serve kubelet: %w", err)
	}
	// kubelet takes the end of this socket for that of the plugin, and asks no more.
	remove(path, registrations)
	registrationServer.Stop()
	p.drain(ctx, csiServer)
	serving.Wait()
	return err
}

// drain lets calls end that are under way.
func (p *Plugin) drain(ctx context.Context, server *grpc.Server) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.GracefulStop()
		p.server.operations.all.Wait()
	}()
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		klog.FromContext(ctx).Info("Stopping with calls under way; the next start goes on with them")
		server.Stop()
	}
}

// listener is a socket, with its file as it was made.
type listener struct {
	net.Listener
	file fs.FileInfo
}

// listen makes a socket. A plugin that was killed leaves its own behind.
func listen(ctx context.Context, path string) (*listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("listen on %s: there is something else than a socket", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the socket of an earlier plugin: %w", err)
		}
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The path may be another plugin's by the time this one ends: see remove.
	if unix, ok := l.(*net.UnixListener); ok {
		unix.SetUnlinkOnClose(false)
	}
	info, err := os.Lstat(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close())
	}
	return &listener{l, info}, nil
}

// remove removes a socket's file, if it is still its own.
func remove(path string, l *listener) {
	if now, err := os.Lstat(path); err == nil && os.SameFile(now, l.file) {
		_ = os.Remove(path) // the next plugin does it otherwise
	}
}

// interceptor logs, counts and guards each call. It never logs a request: that has the
// key in it.
func (p *Plugin) interceptor(ctx context.Context) grpc.ServerOption {
	logger := klog.FromContext(ctx)
	return grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
		method := info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]
		log := withSubject(logger.WithValues("method", method), request)
		ctx = klog.NewContext(ctx, log)
		began := time.Now()
		err = recovered(ctx, func() error {
			response, err = handler(ctx, request)
			return err
		})
		took := time.Since(began)
		code := status.Code(err)
		p.server.cfg.Observe(method, code, took)
		switch level := log.V(verbosity(method)); {
		case err != nil && code != codes.Unimplemented:
			log.Info("Refused", "code", code.String(), "err", status.Convert(err).Message(), "took", took.String())
		case level.Enabled():
			level.Info("Done", "took", took.String())
		}
		return response, err
	})
}

// verbosity is that of kubelet's frequent questions, or that of what changes something.
func verbosity(method string) int {
	switch method {
	case "NodeStageVolume", "NodeUnstageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeExpandVolume":
		return 2
	default:
		return 5
	}
}

// withSubject adds what a request is about.
func withSubject(log klog.Logger, request any) klog.Logger {
	if r, ok := request.(interface{ GetVolumeId() string }); ok && r.GetVolumeId() != "" {
		log = log.WithValues("volume", r.GetVolumeId())
	}
	if r, ok := request.(interface{ GetTargetPath() string }); ok && r.GetTargetPath() != "" {
		return log.WithValues("target", r.GetTargetPath())
	}
	if r, ok := request.(interface{ GetStagingTargetPath() string }); ok && r.GetStagingTargetPath() != "" {
		return log.WithValues("staging", r.GetStagingTargetPath())
	}
	return log
}
