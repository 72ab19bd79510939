// SPDX-License-Identifier: Apache-2.0

//go:build cgo

package goceph

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	rigs "ceph.com/rbd-provisioner/test/cluster"
)

// TestInstall runs the commands of README.md as printed there, on the installed Ceph, or
// that of the environment, and on one as newly made by 20.2.4, and works as the users that
// they make.
func TestInstall(t *testing.T) {
	t.Run("installed", func(t *testing.T) { t.Parallel(); testInstall(t, startRig(t, "", "")) })
	t.Run("newly made with 20", func(t *testing.T) {
		t.Parallel()
		c := testInstall(t, startRig(t, "20", rigs.KeysAES256K))
		c.testKeyTypes(t)
	})
}

func testInstall(t *testing.T, rig *rigs.Ceph) *ceph {
	commands := installCommands(t)
	run := func(script string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // one of them repeats
		defer cancel()
		if _, err := rig.Run(ctx, "bash", "-ec", script); err != nil {
			t.Fatal(err)
		}
	}
	run(commands[0])
	// To whom the README gives the others.
	monitors, err := rig.Run(t.Context(), "ceph", "mon", "dump")
	if err != nil {
		t.Fatal(err)
	}
	c := &ceph{rig: rig}
	if strings.Contains(monitors, "\nauth_allowed_ciphers aes256k\n") {
		if got := c.user(t, "kube").Key.Type(); got != "aes256k" {
			t.Errorf("at first, the user's key is of type %s, want aes256k", got)
		}
		run(commands[1])
	}
	c.admin = c.user(t, "kube-admin")
	user := c.user(t, "kube")
	for _, creds := range []rbd.Credentials{c.admin, user} {
		if got := creds.Key.Type(); got != rbd.KeyTypeAES {
			t.Errorf("the key of %s is of type %s, want aes", creds.User, got)
		}
	}
	connector := newTestConnector(t, Config{})
	c.createAs(t, connector, c.admin)
	c.createAs(t, connector, user)
	return c
}

// installCommands returns what README.md prints between two sentences, one script for each
// block.
func installCommands(t *testing.T) []string {
	t.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "\nIn Ceph, make a pool and two users")
	part, _, found := strings.Cut(rest, "\nPut their keys into secrets")
	blocks := strings.Split(part, "```console\n")
	if !found || len(blocks) != 3 {
		t.Fatalf("README.md has %d blocks of commands about Ceph, want 2", len(blocks)-1)
	}
	var scripts []string
	for _, block := range blocks[1:] {
		block, _, _ = strings.Cut(block, "```")
		scripts = append(scripts, strings.ReplaceAll("\n"+block, "\n$ ", "\n"))
	}
	return scripts
}

// user returns the credentials of a user of the cluster.
func (c *ceph) user(t *testing.T, name string) rbd.Credentials {
	t.Helper()
	key, err := c.rig.Key(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return c.credentials(t, name, key)
}

// createAs makes an image of the user's name.
func (c *ceph) createAs(t *testing.T, connector *Connector, creds rbd.Credentials) {
	t.Helper()
	shared, err := connector.Connect(t.Context(), creds)
	if err != nil {
		t.Fatal(err)
	}
	defer shared.Close()
	p, err := shared.OpenPool(t.Context(), "kube")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.CreateImage(t.Context(), creds.User, rbd.ImageSpec{SizeBytes: 1 << 20}); err != nil {
		t.Error(err)
	}
}

// testKeyTypes connects with a key of type aes256k, as this program's librados can or
// can't.
func (c *ceph) testKeyTypes(t *testing.T) {
	if _, err := c.rig.Run(t.Context(), "ceph", "auth", "get-or-create", "client.strong",
		"mon", "profile rbd", "osd", "profile rbd pool=kube", "--key-type", "aes256k"); err != nil {
		t.Fatal(err)
	}
	strong := c.user(t, "strong")
	connector := newTestConnector(t, Config{})
	_, release, _ := strings.Cut(Version(), " (Ceph ")
	var major int
	if _, err := fmt.Sscan(strings.ReplaceAll(release, ".", " "), &major); err != nil {
		t.Fatalf("the version %q does not say its release: %v", Version(), err)
	}
	if major >= 20 {
		c.createAs(t, connector, strong)
		return
	}
	want := fmt.Sprintf(`connect to monitors "v1:%s" as user "strong": this program can't use a key of this type: aes256k, with librados %s`,
		c.rig.MonitorV1, Version())
	if _, err := connector.Connect(t.Context(), strong); !errors.Is(err, rbd.ErrKeyType) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
