// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"time"

	"golang.org/x/sync/singleflight"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilcache "k8s.io/apimachinery/pkg/util/cache"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/kubernetes"
	storagev1client "k8s.io/client-go/kubernetes/typed/storage/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner"
	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// nodesAge is how long claims share an answer about what nodes can mount: a burst of them
// asks once. A claim that fails for want of the node plugin is retried later than that as a
// rule, and so finds what was installed.
const nodesAge = 2 * time.Second

// nodes implements provisioner.Nodes by asking the API server.
type nodes struct {
	version discovery.ServerVersionInterfaceWithContext
	drivers storagev1client.CSIDriversGetter

	asking singleflight.Group
	recent *utilcache.Expiring // answer by question
}

var _ provisioner.Nodes = (*nodes)(nil)

func newNodes(client kubernetes.Interface) *nodes {
	return &nodes{version: client.Discovery(), drivers: client.StorageV1(), recent: utilcache.NewExpiring()}
}

// answer is what the API server said.
type answer struct {
	yes bool
	err error // none, or provisioner.ErrPluginUnknown
}

// HaveInTree implements provisioner.Nodes. Kubelets and controller managers are not newer
// than the API server.
func (n *nodes) HaveInTree(ctx context.Context) (bool, error) {
	return n.ask(ctx, "version", func(ctx context.Context) (answer, error) {
		v, err := n.version.ServerVersionWithContext(ctx)
		if err != nil {
			return answer{}, err
		}
		return answer{yes: !lacksInTreeRBD(v)}, nil
	})
}

// HavePlugin implements provisioner.Nodes.
func (n *nodes) HavePlugin(ctx context.Context) (bool, error) {
	return n.ask(ctx, "plugin", func(ctx context.Context) (answer, error) {
		_, err := n.drivers.CSIDrivers().Get(ctx, volume.CSIDriver, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return answer{}, nil
		case apierrors.IsForbidden(err):
			return answer{err: provisioner.ErrPluginUnknown}, nil
		case err != nil:
			return answer{}, err
		}
		return answer{yes: true}, nil
	})
}

// ask shares the answer to a question. An error is no answer: the next caller asks again.
func (n *nodes) ask(ctx context.Context, question string, call func(context.Context) (answer, error)) (bool, error) {
	asking := n.asking.DoChan(question, func() (any, error) {
		if recent, ok := n.recent.Get(question); ok {
			return recent, nil
		}
		// Others may wait for this call: it has its own deadline, and does not end with the
		// caller that began it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), access.DefaultTimeout)
		defer cancel()
		said, err := call(ctx)
		if err == nil {
			n.recent.Set(question, said, nodesAge)
		}
		return said, err
	})
	select {
	case result := <-asking:
		if result.Err != nil {
			return false, result.Err
		}
		said := result.Val.(answer)
		return said.yes, said.err
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// logNodes says at the start which volumes nodes can mount, where that is not only in-tree
// ones.
func logNodes(ctx context.Context, n provisioner.Nodes) {
	logger := klog.FromContext(ctx)
	inTree, err := n.HaveInTree(ctx)
	if err != nil {
		logger.Error(err, "Which volumes nodes can mount is not known: each claim will ask again")
		return
	}
	installed, err := n.HavePlugin(ctx)
	switch {
	case inTree && installed:
		logger.Info(`Volumes are in-tree, unless their StorageClass gives "volumeSource" as csi: the node plugin is installed`)
	case inTree:
	case err != nil:
		logger.Info("WARNING: whether the node plugin is installed is not known, and Kubernetes can't mount in-tree volumes from 1.31 on: volumes "+
			`are bound, but Pods that use them do not start, unless their StorageClass gives "volumeSource" as csi; apply the manifests of rbac/`, "err", err)
	case installed:
		logger.Info("Volumes are those of the node plugin, which is installed (CSI)")
	default:
		logger.Info("WARNING: the node plugin is not installed, and Kubernetes can't mount in-tree volumes from 1.31 on: volumes are bound, "+
			"but Pods that use them do not start; install it", "command", provisioner.InstallPlugin)
	}
}

// lacksInTreeRBD reports whether a server's version is one whose kubelet and controller
// manager no longer have an rbd plugin.
func lacksInTreeRBD(v *apiversion.Info) bool {
	parsed, err := utilversion.ParseGeneric(v.GitVersion)
	return err == nil && parsed.AtLeast(utilversion.MajorMinor(1, 31))
}
