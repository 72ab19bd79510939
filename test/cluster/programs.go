// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// DefaultKubernetesVersion is the last release whose kubelet and controller
// manager attach in-tree rbd volumes.
const DefaultKubernetesVersion = "1.30.14"

// programs are the paths of the control plane's programs.
type programs struct {
	etcd, apiserver, controllerManager, kubectl string
	version, cache                              string
}

// findPrograms looks for the programs in KUBEBUILDER_ASSETS, then in the cache folder
// that hack/kubernetes/build.sh fills, and for etcd also in PATH. It builds and downloads
// nothing.
func findPrograms(version string) (*programs, error) {
	version = strings.TrimPrefix(cmp.Or(version, os.Getenv("K8S_VERSION"), DefaultKubernetesVersion), "v")
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	p := &programs{version: version, cache: cache}
	folders := []string{filepath.Join(cache, "kubernetes", "v"+version)}
	if assets := os.Getenv("KUBEBUILDER_ASSETS"); assets != "" {
		folders = append([]string{assets}, folders...)
	}
	var missing []string
	for _, program := range []struct {
		path *string
		name string
	}{
		{&p.apiserver, "kube-apiserver"},
		{&p.controllerManager, "kube-controller-manager"},
		{&p.kubectl, "kubectl"},
		{&p.etcd, "etcd"},
	} {
		for _, folder := range folders {
			if path, err := exec.LookPath(filepath.Join(folder, program.name)); err == nil {
				*program.path = path
				break
			}
		}
		if *program.path == "" && program.name != "etcd" {
			missing = append(missing, program.name)
		}
	}
	var errs []error
	if len(missing) > 0 {
		command := "make kubernetes"
		if version != DefaultKubernetesVersion {
			command = "K8S_VERSION=" + version + " " + command
		}
		errs = append(errs, fmt.Errorf("kubernetes %s is not built (no %s in %s): run %q",
			version, strings.Join(missing, ", "), strings.Join(folders, " or "), command))
	}
	if p.etcd == "" {
		if p.etcd, err = exec.LookPath("etcd"); err != nil {
			errs = append(errs, fmt.Errorf("etcd is not installed: run \"make deps\": %w", err))
		}
	}
	return p, errors.Join(errs...)
}

// nodePrograms are what a node needs beside them.
type nodePrograms struct {
	scheduler, qemu string
	// guest is the folder that hack/node/build.sh has filled.
	guest string
}

// findNodePrograms looks for what hack/node/build.sh builds for the control plane's
// version, and for qemu.
func findNodePrograms(p *programs) (*nodePrograms, error) {
	build := "make node"
	if p.version != DefaultKubernetesVersion {
		build = "K8S_VERSION=" + p.version + " " + build
	}
	n := &nodePrograms{scheduler: filepath.Join(p.cache, "kubernetes", "v"+p.version, "kube-scheduler")}
	var errs []error
	if _, err := exec.LookPath(n.scheduler); err != nil {
		errs = append(errs, fmt.Errorf("kube-scheduler is not built: run %q: %w", build, err))
	}
	// The link names the guest that was built last; this run keeps using that one.
	var err error
	if n.guest, err = filepath.EvalSymlinks(filepath.Join(p.cache, "node", "v"+p.version)); err != nil {
		errs = append(errs, fmt.Errorf("the node is not built: run %q: %w", build, err))
	}
	if n.qemu, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		errs = append(errs, fmt.Errorf("qemu is not installed: run \"make deps-node\": %w", err))
	}
	return n, errors.Join(errs...)
}

// CacheDir is the folder outside the repository for what is built once (by
// hack/kubernetes/build.sh and hack/node/build.sh) and for the demo.
func CacheDir() (string, error) {
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return filepath.Join(dir, "rbd-provisioner"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(home, ".cache", "rbd-provisioner"), nil
}
