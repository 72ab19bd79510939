// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// clients are the connections to the API server.
type clients struct {
	main kubernetes.Interface
	// leases has limits of its own: a burst of claims must not keep the lease
	// from being renewed.
	leases kubernetes.Interface
}

func newClients(o *options) (*clients, error) {
	config, err := restConfig(o)
	if err != nil {
		return nil, err
	}
	config.UserAgent = "rbd-provisioner/" + version
	config.QPS = float32(o.qps)
	config.Burst = o.burst
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	// The server warns of every volume that in-tree rbd is deprecated: once
	// is enough.
	config.WarningHandler = rest.NewWarningWriter(os.Stderr, rest.WarningWriterOptions{Deduplicate: true})
	main, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	leases := rest.CopyConfig(config)
	leases.Timeout = max(o.renewDeadline/2, time.Second)
	leaseClient, err := kubernetes.NewForConfig(leases)
	if err != nil {
		return nil, fmt.Errorf("API server: %w", err)
	}
	return &clients{main: main, leases: leaseClient}, nil
}

func restConfig(o *options) (*rest.Config, error) {
	if o.master == "" && o.kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("not running in a Pod, so give -kubeconfig or -master: %w", err)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags(o.master, o.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("-kubeconfig or -master: %w", err)
	}
	return config, nil
}

// lacksInTreeRBD reports whether a server is of a version whose kubelet and
// controller manager have no rbd plugin any more.
func lacksInTreeRBD(v *apiversion.Info) bool {
	parsed, err := utilversion.ParseGeneric(v.GitVersion)
	return err == nil && parsed.AtLeast(utilversion.MajorMinor(1, 31))
}
