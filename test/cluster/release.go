// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// cephRelease is one release of Ceph's programs.
type cephRelease struct {
	// bin is the folder that hack/ceph/build.sh has filled; empty for those installed.
	bin string
	// version is like "20.2.4".
	version string
	// classes is the folder of an OSD's classes; empty if the OSD finds it by itself. The
	// packages of later Debians name it relative to where the OSD starts.
	classes string
}

// findCeph looks for the programs of a release ("20"; empty is the environment's
// CEPH_VERSION, and without it what is installed): among those installed, then in the
// cache folder. It builds and installs nothing.
func findCeph(release string) (*cephRelease, error) {
	release = cmp.Or(release, os.Getenv("CEPH_VERSION"))
	// In a process that bin/enter has started, those are not the machine's.
	if os.Getenv("CEPH_ENTERED") == "" {
		if version := installedCeph(); version != "" && (release == "" || strings.HasPrefix(version, release+".")) {
			return &cephRelease{version: version}, nil
		}
	}
	if release == "" {
		return nil, errors.New("no Ceph is installed: run \"make deps\", or with another client set CEPH_VERSION")
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	// The link names what was built last; this run keeps using that one.
	dir, err := filepath.EvalSymlinks(filepath.Join(cache, "ceph", "v"+release))
	if err != nil {
		return nil, fmt.Errorf("release %s of Ceph is not built: run \"make ceph CEPH_VERSION=%s\": %w", release, release, err)
	}
	version, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return nil, fmt.Errorf("find Ceph %s: %w", release, err)
	}
	c := &cephRelease{bin: filepath.Join(dir, "bin"), version: strings.TrimSpace(string(version))}
	classes, err := filepath.Glob(filepath.Join(dir, "root", "usr", "lib", "*", "rados-classes"))
	if err != nil || len(classes) != 1 {
		return nil, fmt.Errorf("find Ceph %s: %d folders rados-classes in %s, want 1", release, len(classes), dir)
	}
	c.classes = strings.TrimPrefix(classes[0], filepath.Join(dir, "root"))
	return c, nil
}

// installedCeph is the version that is installed, and empty if none is.
func installedCeph() string {
	out, _ := exec.Command("ceph-mon", "--version").Output() // its output says it all
	if fields := strings.Fields(string(out)); len(fields) > 2 {
		return fields[2] // "ceph version 16.2.15 (…"
	}
	return ""
}

// major is the release's number.
func (c *cephRelease) major() int {
	major, _, _ := strings.Cut(c.version, ".")
	n, _ := strconv.Atoi(major) // Ceph's versions begin with a number
	return n
}

// environment puts the release's programs first.
func (c *cephRelease) environment() []string {
	if c.bin == "" {
		return nil
	}
	return []string{"PATH=" + c.bin + string(filepath.ListSeparator) + os.Getenv("PATH")}
}
