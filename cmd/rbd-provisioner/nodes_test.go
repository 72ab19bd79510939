// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiversion "k8s.io/apimachinery/pkg/version"
	fakediscovery "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// serverOf returns a client for a server of that version; with installed, it has the node
// plugin's object.
func serverOf(version string, installed bool) *fake.Clientset {
	var objects []runtime.Object
	if installed {
		objects = append(objects, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: volume.CSIDriver}})
	}
	client := fake.NewClientset(objects...)
	client.Discovery().(*fakediscovery.FakeDiscovery).FakedServerVersion = &apiversion.Info{GitVersion: version}
	return client
}

func failing(client *fake.Clientset, err error) *fake.Clientset {
	client.PrependReactor("get", "csidrivers", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, err })
	return client
}

var (
	errForbidden = apierrors.NewForbidden(storagev1.Resource("csidrivers"), volume.CSIDriver, errors.New("no such right"))
	errServer    = apierrors.NewInternalError(errors.New("etcd is away"))
)

func TestNodes(t *testing.T) {
	for _, test := range []struct {
		name           string
		client         *fake.Clientset
		inTree, plugin bool
		pluginErr      error
	}{
		{"an old server", serverOf("v1.30.14", false), true, false, nil},
		{"an old server with the plugin", serverOf("v1.24.0", true), true, true, nil},
		{"a new server", serverOf("v1.31.0", false), false, false, nil},
		{"a new server with the plugin", serverOf("v1.36.3", true), false, true, nil},
		{"no right", failing(serverOf("v1.36.3", true), errForbidden), false, false, provisioner.ErrPluginUnknown},
		{"no answer", failing(serverOf("v1.36.3", true), errServer), false, false, errServer},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNodes(test.client)
			if inTree, err := n.HaveInTree(t.Context()); err != nil || inTree != test.inTree {
				t.Errorf("in-tree: got %v, %v, want %v", inTree, err, test.inTree)
			}
			if plugin, err := n.HavePlugin(t.Context()); !errors.Is(err, test.pluginErr) || plugin != test.plugin {
				t.Errorf("the plugin: got %v, %v, want %v, %v", plugin, err, test.plugin, test.pluginErr)
			}
		})
	}
}

// A burst of claims asks once; what changed since is seen a moment later, and an error is
// not remembered.
func TestNodesAreAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := serverOf("v1.36.3", false)
		asked := func() int {
			defer client.ClearActions()
			return len(client.Actions())
		}
		n := newNodes(client)
		burst := func(want bool) {
			t.Helper()
			var claims sync.WaitGroup
			for range 50 {
				claims.Go(func() {
					if got, err := n.HavePlugin(t.Context()); err != nil || got != want {
						t.Errorf("got %v, %v, want %v", got, err, want)
					}
				})
			}
			claims.Wait()
		}
		burst(false)
		if got := asked(); got != 1 {
			t.Errorf("%d requests, want 1", got)
		}
		driver := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: volume.CSIDriver}}
		if _, err := client.StorageV1().CSIDrivers().Create(t.Context(), driver, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		asked()
		burst(false)
		time.Sleep(nodesAge)
		burst(true)
		if got := asked(); got != 1 {
			t.Errorf("%d requests, want 1", got)
		}

		time.Sleep(nodesAge)
		failing(client, errServer)
		for range 2 {
			if _, err := n.HavePlugin(t.Context()); !errors.Is(err, errServer) {
				t.Errorf("got %v, want %v", err, errServer)
			}
		}
		if got := asked(); got != 2 {
			t.Errorf("%d requests after errors, want 2", got)
		}
		ended, cancel := context.WithCancelCause(t.Context())
		cancel(errServer)
		if _, err := n.HavePlugin(ended); !errors.Is(err, errServer) {
			t.Errorf("an ended context: got %v", err)
		}
	})
}

// The log of the start says which volumes nodes can mount.
func TestLogNodes(t *testing.T) {
	for _, test := range []struct {
		name   string
		client *fake.Clientset
		want   string // in the only line; empty for none
	}{
		{"in-tree", serverOf("v1.30.14", false), ""},
		{"in-tree, and no right", failing(serverOf("v1.30.14", true), errForbidden), ""},
		{"both", serverOf("v1.30.14", true), `unless their StorageClass gives \"volumeSource\" as csi: the node plugin is installed`},
		{"the plugin", serverOf("v1.36.3", true), "Volumes are those of the node plugin"},
		{"neither", serverOf("v1.36.3", false), `"command"="kubectl apply -f deploy/node/"`},
		{"no right", failing(serverOf("v1.36.3", true), errForbidden), "apply the manifests of rbac/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var lines []string
			logNodes(klog.NewContext(t.Context(), funcr.New(func(_, line string) { lines = append(lines, line) }, funcr.Options{})), newNodes(test.client))
			warned := strings.Contains(strings.Join(lines, ""), "WARNING")
			if test.want == "" && len(lines) > 0 || test.want != "" && (len(lines) != 1 || !strings.Contains(lines[0], test.want)) ||
				warned != (test.name == "neither" || test.name == "no right") {
				t.Errorf("got %q, want %q", lines, test.want)
			}
		})
	}
}

func TestLacksInTreeRBD(t *testing.T) {
	for version, want := range map[string]bool{
		"v1.24.17": false, "v1.30.14": false, "v1.30.99+k3s1": false, "v1.31.0": true, "v1.31.1-eks-1": true,
		"v1.36.3": true, "v2.0.0": true, "": false, "unknown": false,
	} {
		if got := lacksInTreeRBD(&apiversion.Info{GitVersion: version}); got != want {
			t.Errorf("%q: got %v, want %v", version, got, want)
		}
	}
}
