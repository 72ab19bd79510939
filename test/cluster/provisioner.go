// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
)

// ProvisionerConfig says how to run the provisioner.
type ProvisionerConfig struct {
	// Binary is the path of the program.
	Binary string
	// Args follow -kubeconfig and -http-endpoint.
	Args []string
	// Env are variables as KEY=VALUE. Besides them, the process gets PATH, HOME, LC_ALL,
	// TMPDIR and POD_NAMESPACE, and nothing of the caller's environment.
	Env []string
	// Namespace and ServiceAccount name the account for its login, which must exist. RBAC
	// decides about the account's rights.
	Namespace, ServiceAccount string
	// NoWait does not wait until it is ready, for a provisioner that will not be.
	NoWait bool
}

// Provisioner is one running provisioner.
type Provisioner struct {
	*Daemon
	// Kubeconfig is the path of its kubeconfig.
	Kubeconfig string
	// URL is that of its HTTP endpoint, as "http://127.0.0.1:8080".
	URL string
}

// StartProvisioner runs the provisioner as a process of its own and waits until
// its /readyz answers with 200. Several may run at once.
func (c *Cluster) StartProvisioner(ctx context.Context, cfg ProvisionerConfig) (*Provisioner, error) {
	if c.Kube == nil {
		return nil, errors.New("start provisioner: the rig has no Kubernetes")
	}
	binary, err := filepath.Abs(cfg.Binary)
	if err != nil {
		return nil, fmt.Errorf("start provisioner: %w", err)
	}
	// Without this, only its log would show that a program is missing.
	if _, err := exec.LookPath(binary); err != nil {
		return nil, fmt.Errorf("start provisioner: %w: run \"make build\"", err)
	}
	kubeconfig, err := c.Kube.ServiceAccountKubeconfig(ctx, cfg.Namespace, cfg.ServiceAccount)
	if err != nil {
		return nil, fmt.Errorf("start provisioner: %w", err)
	}
	port, err := c.Port()
	if err != nil {
		return nil, fmt.Errorf("start provisioner: %w", err)
	}
	endpoint := c.endpoint(port)
	c.mu.Lock()
	c.provisioners++
	name := fmt.Sprintf("provisioner-%d", c.provisioners)
	c.mu.Unlock()
	d := c.newDaemon(name, append([]string{"POD_NAMESPACE=" + cfg.Namespace, "TMPDIR=" + c.Dir}, cfg.Env...),
		binary, append([]string{"-kubeconfig=" + kubeconfig, "-http-endpoint=" + endpoint}, cfg.Args...)...)
	url := "http://" + endpoint
	if !cfg.NoWait {
		d.ready = func(ctx context.Context) error { return c.Kube.healthy(ctx, url+"/readyz") }
	}
	d.gentle = true
	if err := d.Start(ctx); err != nil {
		return nil, fmt.Errorf("start provisioner: %w", err)
	}
	return &Provisioner{Daemon: d, Kubeconfig: kubeconfig, URL: url}, nil
}
