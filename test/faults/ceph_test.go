// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"ceph.com/rbd-provisioner/test/cluster"
)

// These are the ways in which an event says that Ceph did not answer.
var noAnswer = []string{
	"no answer in time, the outcome is unknown", "no answer lately", "no monitor answered",
	"the connection to the cluster was lost", "an earlier call on it has not ended", "still being removed",
	"earlier calls to the pool have had no answer yet",
}

// Servers of Ceph hang or are restarted for longer than every deadline, while claims are
// made, have their images made, and are deleted. Once Ceph is back, everything settles
// without help.
func TestCephFails(t *testing.T) {
	t.Parallel()
	for _, fault := range []struct {
		name string
		// begin and end bound the fault.
		begin, end func(f *fixture) error
		// works says that clients that are connected are not disturbed.
		works bool
	}{
		{
			"OSD hangs",
			func(f *fixture) error { return f.ceph.OSD.Pause(f.ctx()) },
			func(f *fixture) error { return f.ceph.OSD.Resume() },
			false,
		},
		{
			"monitor hangs",
			func(f *fixture) error { return f.ceph.Mon.Pause(f.ctx()) },
			func(f *fixture) error { return f.ceph.Mon.Resume() },
			true,
		},
		{
			"all hang",
			func(f *fixture) error { return each(f, func(d *cluster.Daemon) error { return d.Pause(f.ctx()) }) },
			func(f *fixture) error { return each(f, (*cluster.Daemon).Resume) },
			false,
		},
		{
			"all are down",
			func(f *fixture) error { return each(f, (*cluster.Daemon).Stop) },
			func(f *fixture) error {
				// The monitor before those that ask it.
				for _, d := range []*cluster.Daemon{f.ceph.Mon, f.ceph.OSD, f.ceph.Mgr} {
					if err := d.Start(f.ctx()); err != nil {
						return err
					}
				}
				return nil
			},
			false,
		},
	} {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, longLease...)
			before := f.claims("before", 6)
			var volumes []*corev1.PersistentVolume
			for _, claim := range before {
				volumes = append(volumes, f.bound(claim))
			}
			// The fault begins while some are under way.
			under := f.claims("under-way", 6)
			f.bound(under[0])
			f.must(fault.begin(f))
			during := f.claims("during", 6)
			f.delete(before[:3]...)
			f.delete(under[:2]...)

			if fault.works {
				f.bound(during[0])
				f.bound(during[5])
				f.gone(volumes[0])
			} else {
				// Longer than every deadline, and than one attempt.
				f.event(during[0], 2, noAnswer...)
				f.event(during[5], 2, noAnswer...)
				f.event(volumes[0], 1, noAnswer...)
			}
			// These are deleted while it is unknown how far they got.
			f.delete(during[:2]...)

			f.must(fault.end(f))
			f.delete(during[2])
			for _, claim := range during[3:] {
				f.bound(claim)
			}
			f.settled()
			f.running()
		})
	}
}

// each calls do for all of Ceph's servers.
func each(f *fixture, do func(*cluster.Daemon) error) error {
	for _, d := range []*cluster.Daemon{f.ceph.OSD, f.ceph.Mgr, f.ceph.Mon} {
		if err := do(d); err != nil {
			return fmt.Errorf("%s: %w", d.Name, err)
		}
	}
	return nil
}

// The monitor is restarted, and all that is open stays open.
func TestMonitorRestarts(t *testing.T) {
	t.Parallel()
	f := newFixture(t, longLease...)
	claims := f.claims("before", 10)
	f.bound(claims[0])
	f.must(f.ceph.Mon.Stop())
	f.delete(claims[:5]...)
	claims = f.claims("during", 5)
	f.must(f.ceph.Mon.Start(f.ctx()))
	for _, claim := range claims {
		f.bound(claim)
	}
	f.settled()
	f.running()
}

// Claims are deleted while the OSD holds up the making of their images: one before the
// provisioner stops waiting, and one after.
func TestClaimDeletedWhileItsImageIsMade(t *testing.T) {
	t.Parallel()
	f := newFixture(t, longLease...)
	f.bound(f.claim("warm-up")) // it is connected
	f.must(f.ceph.OSD.Pause(f.ctx()))
	early, late := f.claim("early"), f.claim("late")
	f.logged(f.p, `"Started"`, fmt.Sprintf("PVC=%q", f.namespaceOf(early)+"/"+early.Name))
	f.delete(early)
	f.event(late, 1, noAnswer...)
	f.delete(late)
	f.must(f.ceph.OSD.Resume())
	// Each of them settles: there is nothing, or a volume that Kubernetes releases.
	f.settled()
	f.running()
}

// A volume is taken away by force while its image is being deleted: that is no error.
func TestVolumeForcedAwayWhileItsImageIsDeleted(t *testing.T) {
	t.Parallel()
	f := newFixture(t, append(slices.Clone(longLease), "-command-timeout=60")...)
	claim := f.claim("data")
	pv := f.bound(claim)
	f.must(f.ceph.OSD.Pause(f.ctx()))
	f.delete(claim)
	f.logged(f.p, `"Started"`, fmt.Sprintf("PV=%q", pv.Name))
	volumes := f.kube.Client.CoreV1().PersistentVolumes()
	f.must(volumes.Delete(f.ctx(), pv.Name, metav1.DeleteOptions{}))
	f.eventually(func(ctx context.Context) error {
		_, err := volumes.Patch(ctx, pv.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		switch {
		case err == nil:
			return fmt.Errorf("volume %s is still there", pv.Name)
		case apierrors.IsNotFound(err):
			return nil
		}
		return err
	})
	f.must(f.ceph.OSD.Resume())
	f.logged(f.p, `"Image moved to the trash"`, fmt.Sprintf("PV=%q", pv.Name))
	f.bound(f.claim("later"))
	f.settled()
	text, err := os.ReadFile(f.p.Log)
	f.must(err)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "E") && strings.Contains(line, pv.Name) {
			t.Errorf("the log says at error level: %s", line)
		}
	}
}

// running checks that the provisioner was not restarted, and had no need to be.
func (f *fixture) running() {
	f.Helper()
	select {
	case <-f.p.Done():
		f.Fatalf("the provisioner ended, with status %d", f.p.ExitCode())
	default:
	}
}
