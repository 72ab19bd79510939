// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCpio unpacks an archive with the usual program.
func TestCpio(t *testing.T) {
	t.Parallel()
	files := map[string][]byte{
		"a":         []byte("four"),
		"rig/b":     []byte("no multiple of four\n"),
		"rig/c/d/e": {},
	}
	archive := string(cpio(files))
	if len(archive)%4 != 0 || !strings.HasPrefix(archive, "070701") {
		t.Errorf("archive of %d bytes begins with %q", len(archive), archive[:6])
	}
	dir := t.TempDir()
	cmd := exec.Command("cpio", "--quiet", "-i")
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestNodeNeedsBothHalvesAndANamespace(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, want string
		cfg        Config
	}{
		{"without Ceph no volume can be mapped", "needs both", Config{Node: true, SkipCeph: true}},
		{"without Kubernetes no Pod runs", "needs both", Config{Node: true, SkipKubernetes: true}},
		{"outside of a namespace its addresses are everyone's", "EnterNamespace", Config{Node: true}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.cfg.Dir = filepath.Join(t.TempDir(), "rig")
			c, err := Start(t.Context(), test.cfg)
			if err == nil {
				t.Fatal("started", c.Stop())
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want it to say %q", err, test.want)
			}
			if err := nothingLeft(test.cfg.Dir); err != nil {
				t.Error(err)
			}
		})
	}
}
