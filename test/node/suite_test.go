// SPDX-License-Identifier: Apache-2.0

// Package node tests what users want volumes for: Pods that write to them. The
// node is real but emulated (see cluster.Node), the provisioner is a process
// that has exactly the rights of rbac/.
//
// One rig serves all tests. Each has a namespace, a pool and a class of its own.
// What needs no Pod is tested in test/e2e, which is much quicker.
package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// root is the checkout.
	root = "../.."
	// namespace and account are those of rbac/.
	namespace = "kube-system"
	account   = "rbd-provisioner"
	// patience bounds each wait. Alone, a Pod is done within half a minute.
	patience = 3 * time.Minute
)

// rig is what all tests share. It is set before the first one runs.
var rig *cluster.Cluster

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "node:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	if err := cluster.EnterNamespace(); err != nil {
		return 1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Minute)
	defer cancel()
	rig, err = cluster.Start(ctx, cluster.Config{Node: true, Progress: func(line string) { fmt.Println(line) }})
	if err != nil {
		return 1, err
	}
	defer func() {
		if code != 0 || err != nil {
			rig.DumpLogs(os.Stderr)
		}
		err = errors.Join(err, rig.Stop())
	}()
	if err := startProvisioner(ctx); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// startProvisioner runs a provisioner as the account of rbac/ and waits until it
// is ready.
func startProvisioner(ctx context.Context) error {
	rbac, err := filepath.Abs(filepath.Join(root, "rbac"))
	if err != nil {
		return err
	}
	if _, err := rig.Kube.Kubectl(ctx, "", "apply", "-f", rbac); err != nil {
		return err
	}
	_, err = rig.StartProvisioner(ctx, cluster.ProvisionerConfig{
		Binary:         filepath.Join(root, "bin", "rbd-provisioner"),
		Args:           []string{"-v=4"},
		Namespace:      namespace,
		ServiceAccount: account,
	})
	return err
}
