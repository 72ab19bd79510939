// SPDX-License-Identifier: Apache-2.0

package goceph

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"

	"ceph.com/rbd-provisioner/provisioner/rbd"
)

// TestVersionIsLogged: each cluster's version is logged once, and again when it has
// changed.
func TestVersionIsLogged(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		var lines []string
		c.log = funcr.New(func(_, line string) { lines = append(lines, line) }, funcr.Options{}) // level 0
		for _, step := range []struct {
			name    string
			told    string
			err     error
			version string
			logged  bool
		}{
			{"a user who may not ask", "", cephError(-13), "unknown", true},
			{"once more", "", cephError(-13), "unknown", false},
			{"a user who may", "18.2.7", nil, "18.2.7", true},
			{"another connection", "18.2.7", nil, "18.2.7", false},
			{"a user who may not, again", "", cephError(-13), "18.2.7", false},
			{"no answer", "", cephError(-110), "18.2.7", false},
			{"after an upgrade", "20.2.4", nil, "20.2.4", true},
		} {
			lines = nil
			f.onVersion = func() (string, error) { return step.told, step.err }
			cluster, p := openImages(t, c, fakeCreds()) // a new key, so a new connection
			synctest.Wait()
			if diff := cmp.Diff(map[string]string{fakeFSID: step.version}, c.Versions()); diff != "" {
				t.Errorf("%s: versions (-want +got):\n%s", step.name, diff)
			}
			text := strings.Join(lines, "\n")
			for _, want := range []string{`"Connected to Ceph"`, `"fsid"="` + fakeFSID + `"`, `"version"="` + step.version + `"`, `"monitors"="10.0.0.1"`, `"librados"="` + Version()} {
				if strings.Contains(text, want) != step.logged {
					t.Errorf("%s: logged %q, with %s: want %t", step.name, text, want, step.logged)
				}
			}
			p.Close()
			cluster.Close()
		}
	})
}

// TestVersionDelaysNothing: while a monitor does not answer the question for its version,
// connections and pools open, and no call suffers from it.
func TestVersionDelaysNothing(t *testing.T) {
	inBubble(t, Config{Timeout: 5 * second}, func(t *testing.T, f *fakeCeph, c *Connector) {
		answer := make(chan struct{})
		f.onVersion = func() (string, error) { <-answer; return fakeVersion, nil }
		began := time.Now()
		cluster, p := openImages(t, c, fakeCreds())
		if err := p.CreateImage(t.Context(), "a", rbd.ImageSpec{}); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %s", took)
		}
		if _, err := cluster.Version(t.Context()); !errors.Is(err, rbd.ErrTimeout) {
			t.Errorf("got %v, want ErrTimeout", err)
		}
		if took := time.Since(began); took != 5*second+grace {
			t.Errorf("the question took %s", took)
		}
		p.Close()
		cluster.Close()
		time.Sleep(2 * idleTimeout)
		f.want(1, 1, 0) // the connection is in use
		close(answer)
		time.Sleep(2 * idleTimeout)
		synctest.Wait()
		f.want(1, 0, 0)
	})
}

// TestVersionRefused: a user who may not ask keeps the connection.
func TestVersionRefused(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, f *fakeCeph, c *Connector) {
		f.onVersion = func() (string, error) { return "", cephError(-13) }
		creds := fakeCreds()
		for range 2 {
			cluster, p := openImages(t, c, creds)
			if _, err := cluster.Version(t.Context()); !errors.Is(err, rbd.ErrPermissionDenied) {
				t.Errorf("got %v, want ErrPermissionDenied", err)
			}
			synctest.Wait()
			p.Close()
			cluster.Close()
		}
		f.want(1, 1, 0)
	})
}

func TestParseVersion(t *testing.T) {
	for answer, want := range map[string]string{
		`{"version":"ceph version 16.2.15 (618f440892089921c3e944a991122ddc44e60516) pacific (stable)"}`: "16.2.15",
		`{"version":"ceph version 19.2.3-pve1 (abc) squid (stable - RelWithDebInfo)"}`:                   "19.2.3-pve1",
		`{"version":"ceph version"}`: "",
		`{}`:                         "",
		``:                           "",
		`ceph version 16.2.15 (618f440892089921c3e944a991122ddc44e60516) pacific (stable)`: "",
	} {
		got, err := parseVersion([]byte(answer))
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%s: got %q, %v, want %q", answer, got, err, want)
		}
	}
}
