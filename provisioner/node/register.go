// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"sync"

	"k8s.io/klog/v2"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// csiVersion is what kubelet wants to hear: it checks the first number.
const csiVersion = "1.0.0"

// registration tells kubelet of the plugin. kubelet finds its socket by itself.
type registration struct {
	registerapi.UnimplementedRegistrationServer
	// endpoint is the path of the CSI socket as kubelet sees it.
	endpoint string

	mu     sync.Mutex // guards status
	status error      // nil once kubelet has registered the plugin
}

var errNotRegistered = errors.New("kubelet: has not registered the plugin yet; check -registration-dir and -kubelet-endpoint")

// GetInfo implements registerapi.RegistrationServer.
func (r *registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{
		Type: registerapi.CSIPlugin, Name: volume.CSIDriver, Endpoint: r.endpoint, SupportedVersions: []string{csiVersion},
	}, nil
}

// NotifyRegistrationStatus implements registerapi.RegistrationServer. kubelet tries again
// by itself.
func (r *registration) NotifyRegistrationStatus(ctx context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.GetPluginRegistered() {
		klog.FromContext(ctx).Info("Registered by kubelet", "endpoint", r.endpoint)
		r.status = nil
	} else {
		r.status = errors.New("kubelet: " + s.GetError())
		klog.FromContext(ctx).Info("Not registered by kubelet, which will retry", "endpoint", r.endpoint, "err", r.status)
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}

func (r *registration) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}
