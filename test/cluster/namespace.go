// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
)

const (
	// loopback is where a rig without a node listens.
	loopback = "127.0.0.1"
	// hostAddress is where a rig with a node listens: the host's end of the wire between
	// the two, because the kernel's rbd driver insists on the address by which the
	// monitor knows itself.
	hostAddress = "10.77.0.1"
	// nodeAddress is the node's end; hack/node/init.sh sets it.
	nodeAddress = "10.77.0.2"
	// podRange has the addresses of the node's Pods, as in hack/node/cni.conflist.
	podRange = "10.88.0.0/24"
	// serviceAddress is the address of the service kubernetes.default, by which Pods know
	// the API server; hack/node/init.sh leads it there.
	serviceAddress = "10.0.0.1"
	// tapDevice is the host's end of the wire.
	tapDevice = "rig0"
	// namespaceVariable holds the network namespace that EnterNamespace made.
	namespaceVariable = "RBD_PROVISIONER_NETNS"
)

// EnterNamespace gives this program a network namespace of its own, in which a rig with a
// node can have addresses and a device that no other program sees. The namespace has a
// loopback device that is down, and ends with the last process in it, so nothing can be
// left behind.
//
// Namespaces belong to threads, and Go has many of these. So the program is started
// again, as the same process with the same arguments, and everything that it did before
// is lost. Call it first in main or TestMain. In the second run it returns nil. It needs
// root.
func EnterNamespace() error {
	if inside, err := inNamespace(); inside || err != nil {
		return err
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	// Exec keeps the state of the calling thread. A thread whose exec failed is in the
	// wrong namespace and stays locked, so that nothing else uses it.
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace, which root may: %w", err)
	}
	own, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	// This replaces one that a caller in another namespace may have left.
	if err := os.Setenv(namespaceVariable, own); err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	err = syscall.Exec(program, os.Args, os.Environ())
	return fmt.Errorf("enter a network namespace: %w", err)
}

// inNamespace reports whether EnterNamespace has done its work. The variable alone could
// come from a caller in another namespace.
func inNamespace() (bool, error) {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return false, fmt.Errorf("find the network namespace: %w", err)
	}
	return os.Getenv(namespaceVariable) == own, nil
}

// makeNetwork makes the wire to the node and switches the loopback device on.
func (c *Cluster) makeNetwork(ctx context.Context) error {
	for _, command := range []string{
		"link set lo up",
		"tuntap add dev " + tapDevice + " mode tap",
		"address add " + hostAddress + "/24 dev " + tapDevice,
		"link set " + tapDevice + " up",
		"route add " + podRange + " via " + nodeAddress,
	} {
		if _, err := c.folder.run(ctx, nil, nil, "ip", strings.Fields(command)...); err != nil {
			return fmt.Errorf("make the node's network: %w", err)
		}
	}
	return nil
}

// prepareNode checks what a node needs before anything is started.
func prepareNode(cfg Config, programs *programs) (*nodePrograms, error) {
	if cfg.SkipCeph || cfg.SkipKubernetes {
		return nil, errors.New("a node needs both Ceph and Kubernetes")
	}
	inside, err := inNamespace()
	if err != nil {
		return nil, err
	}
	if !inside {
		return nil, errors.New("a node needs a network namespace: call EnterNamespace first")
	}
	return findNodePrograms(programs)
}
