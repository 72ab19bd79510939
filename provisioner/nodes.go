// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Nodes says which volumes nodes can mount. It is asked for each claim.
type Nodes interface {
	// HaveInTree reports whether kubelet and kube-controller-manager may have an rbd plugin,
	// by the API server's version.
	HaveInTree(ctx context.Context) (bool, error)
	// HavePlugin reports whether our node plugin is installed: whether its CSIDriver object is
	// there. The error may be ErrPluginUnknown.
	HavePlugin(ctx context.Context) (bool, error)
}

// ErrPluginUnknown means that we may not read the node plugin's CSIDriver object.
var ErrPluginUnknown = errors.New("reading the CSIDriver " + volume.CSIDriver + " is not allowed")

// InstallPlugin is the command that installs the node plugin.
const InstallPlugin = "kubectl apply -f deploy/node/"

// chooseSource returns the source of a new volume: what the class says or, if it says
// nothing, in-tree where nodes have that, and otherwise the node plugin's if that is
// installed. Where Pods could not use the volume, its claim is to get the events. The error
// says why there is to be no volume now.
func (p *Provisioner) chooseSource(ctx context.Context, asked storageclass.Source) (storageclass.Source, []access.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, access.DefaultTimeout)
	defer cancel()
	if asked != storageclass.SourceCSI {
		inTree, err := p.config.Nodes.HaveInTree(ctx)
		switch {
		case err != nil:
			return "", nil, fmt.Errorf("read the API server's version, to know which volumes nodes can mount: %w", err)
		case inTree:
			return storageclass.SourceInTree, nil, nil
		case asked == storageclass.SourceInTree:
			return storageclass.SourceInTree, notMountable(`use a StorageClass without "volumeSource", and the node plugin`), nil
		}
	}
	installed, err := p.config.Nodes.HavePlugin(ctx)
	unknown := errors.Is(err, ErrPluginUnknown)
	switch {
	case err != nil && !unknown:
		return "", nil, fmt.Errorf("look for the node plugin's CSIDriver %q: %w", volume.CSIDriver, err)
	case installed, unknown && asked == storageclass.SourceCSI: // the class knows more than we do
		return storageclass.SourceCSI, nil, nil
	case unknown:
		return storageclass.SourceInTree, notMountable("whether the node plugin is installed is not known, since the provisioner may not " +
			`read its CSIDriver: apply the manifests of rbac/, or give "volumeSource" as csi in the StorageClass; then make the claim anew`), nil
	case asked == storageclass.SourceCSI:
		return "", nil, fmt.Errorf(`the StorageClass gives "volumeSource" as csi, but the node plugin, which mounts such volumes, is not installed: `+
			"there is no CSIDriver %q: run: %s", volume.CSIDriver, InstallPlugin)
	default:
		return storageclass.SourceInTree, notMountable("the node plugin is not installed: run \"" + InstallPlugin + "\", then make the claim anew"), nil
	}
}

// notMountable returns the events about an in-tree volume where nodes can't mount those.
func notMountable(remedy string) []access.Event {
	return []access.Event{{Type: corev1.EventTypeWarning, Reason: "NotMountable",
		Text: "Pods can't use this volume, which is in-tree: Kubernetes can't mount those from 1.31 on: " + remedy}}
}
