// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// newClients returns the connections to the API server. That for leases has its own
// limits: a burst of claims must not keep us from renewing the lease.
func newClients(o *options) (client, leases kubernetes.Interface, err error) {
	config, err := restConfig(o)
	if err != nil {
		return nil, nil, err
	}
	config.UserAgent = "rbd-provisioner/" + version
	config.QPS = float32(o.qps)
	config.Burst = o.burst
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	// For every volume, the server warns that in-tree rbd is deprecated: once is enough.
	config.WarningHandlerWithContext = new(warningLog)
	if client, err = kubernetes.NewForConfig(config); err != nil {
		return nil, nil, fmt.Errorf("API server: %w", err)
	}
	ofLeases := rest.CopyConfig(config)
	ofLeases.Timeout = max(o.renewDeadline/2, time.Second)
	if leases, err = kubernetes.NewForConfig(ofLeases); err != nil {
		return nil, nil, fmt.Errorf("API server: %w", err)
	}
	return client, leases, nil
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

// warningLog logs each warning of the API server once.
type warningLog struct {
	logged sync.Map // by text
}

func (w *warningLog) HandleWarningHeaderWithContext(ctx context.Context, code int, _, text string) {
	// 299 is the only code that the API server sends.
	if code != 299 || text == "" {
		return
	}
	if _, again := w.logged.LoadOrStore(text, true); !again {
		klog.FromContext(ctx).Info("The API server warns", "warning", text)
	}
}
