// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// watched is Linux with its keyrings, whose rbd driver is a function.
type watched struct {
	linux
	written func()
}

func (w watched) write(_, _ string) error {
	w.written()
	return nil
}

// TestKeyring hands a key to this machine's kernel. The thread that writes finds it, while it
// writes, and no other thread ever does. The type is not Ceph's, which not each kernel has.
func TestKeyring(t *testing.T) {
	var name string
	find := func() error {
		_, err := unix.KeyctlSearch(unix.KEY_SPEC_THREAD_KEYRING, "user", name, 0)
		return err
	}
	during, after, elsewhere := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	d := New(Config{})
	d.kernel = watched{linux{keyType: "user"}, func() {
		during <- find()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, err := unix.RequestKey("user", name, "", 0)
			elsewhere <- err
		}()
		<-done
	}}
	name = newKeyName()
	mapped := make(chan error)
	go func() {
		err := d.writeWithKey(t.Context(), "line", name, rbdtest.NewKey())
		after <- find()
		mapped <- err
	}()
	if err := <-mapped; errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		// A container whose keyrings are closed: then that is what it must say.
		r := request("img")
		wantError(t, r.explain(err), err, r, "privileged")
		return
	} else if err != nil {
		t.Fatal(err)
	}
	if err := <-during; err != nil {
		t.Errorf("while it wrote, the thread did not find the key: %v", err)
	}
	if err := <-elsewhere; err == nil {
		t.Error("another thread found the key")
	}
	if err := <-after; !errors.Is(err, unix.ENOKEY) {
		t.Errorf("the key is still in the keyring: %v", err)
	}
}

// TestWrite writes to real files.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	d := New(Config{Sysfs: dir})
	names := []string{"add_single_major", "add"}
	if err := d.write(names, "x"); !errors.Is(err, ErrNoDriver) {
		t.Errorf("without a file: %v", err)
	}
	must(t, os.MkdirAll(d.bus(), 0o755))
	must(t, os.WriteFile(d.bus("add"), nil, 0o600))
	must(t, d.write(names, "old"))
	must(t, os.WriteFile(d.bus("add_single_major"), nil, 0o600))
	must(t, d.write(names, "new"))
	for name, want := range map[string]string{"add": "old", "add_single_major": "new"} {
		if got, err := os.ReadFile(filepath.Join(dir, "bus/rbd", name)); string(got) != want {
			t.Errorf("%s has %q, %v", name, got, err)
		}
	}
	// The driver's own answer comes as it is.
	must(t, os.Remove(d.bus("add_single_major")))
	must(t, os.Symlink("/dev/full", d.bus("add_single_major")))
	if err := d.write(names, "x"); err != unix.ENOSPC { //nolint:errorlint // as it is
		t.Errorf("got %v", err)
	}
}
