// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/cluster"
)

// pair is two provisioners with one name, whose lease is in the fixture's namespace.
type pair struct {
	*fixture
	// first leads; second is ready and waits.
	first, second *cluster.Provisioner
	lease         string
	class         *storagev1.StorageClass
}

func newPair(t *testing.T, args ...string) *pair {
	t.Helper()
	f := newFixture(t)
	f.allowLease()
	p := &pair{fixture: f, lease: "example.com-" + f.name}
	name := "example.com/" + f.name
	args = append([]string{"-leader-election-namespace=" + f.name}, args...)
	p.first = start(t, []string{"PROVISIONER_NAME=" + name}, args...)
	f.eventually(func(context.Context) error {
		if !strings.Contains(log(t, p.first), `"Leading"`) {
			return errors.New("it does not lead yet")
		}
		return nil
	})
	p.second = start(t, []string{"PROVISIONER_NAME=" + name}, args...)
	p.class = f.class("a", func(c *storagev1.StorageClass) { c.Provisioner = name })
	return p
}

// allowLease lets provisioners have a lease in the fixture's namespace.
func (f *fixture) allowLease() {
	f.Helper()
	role := &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "lease", Namespace: f.name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"coordination.k8s.io"}, Resources: []string{"leases"}, Verbs: []string{"create", "get", "update"}}},
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "lease", Namespace: f.name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "lease"},
		Subjects:   []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: namespace, Name: account}},
	}
	_, err := rig.Kube.Client.RbacV1().Roles(f.name).Create(f.Context(), role, metav1.CreateOptions{})
	f.must(err)
	_, err = rig.Kube.Client.RbacV1().RoleBindings(f.name).Create(f.Context(), binding, metav1.CreateOptions{})
	f.must(err)
}

func (p *pair) spec() coordinationv1.LeaseSpec {
	p.Helper()
	lease, err := rig.Kube.Client.CoordinationV1().Leases(p.name).Get(p.Context(), p.lease, metav1.GetOptions{})
	p.must(err)
	return lease.Spec
}

// takenOver waits until another replica has the lease than before.
func (p *pair) takenOver(before coordinationv1.LeaseSpec) coordinationv1.LeaseSpec {
	p.Helper()
	var now coordinationv1.LeaseSpec
	p.eventually(func(context.Context) error {
		now = p.spec()
		if holder := ptr.Deref(now.HolderIdentity, ""); holder == "" || holder == *before.HolderIdentity {
			return fmt.Errorf("the leader is still %q", holder)
		}
		return nil
	})
	return now
}

// burst makes claims and waits until the first one's image is made. The first provisioner
// then has the others in hand.
func (p *pair) burst(n int) []*corev1.PersistentVolumeClaim {
	p.Helper()
	claims := make([]*corev1.PersistentVolumeClaim, n)
	for i := range claims {
		claims[i] = p.claim(fmt.Sprintf("data-%d", i), p.class, nil)
	}
	p.eventually(func(context.Context) error {
		if !strings.Contains(log(p.T, p.first), `"Image created"`) {
			return errors.New("it has made no image yet")
		}
		return nil
	})
	return claims
}

// settled waits until all claims are bound, with one image each, and then deletes them,
// because the provisioners end before the fixture does.
func (p *pair) settled(claims []*corev1.PersistentVolumeClaim) {
	p.Helper()
	for _, claim := range claims {
		p.bound(claim)
	}
	p.must(rig.ImagesMatchVolumes(p.Context(), p.name))
	p.must(rig.Kube.Client.CoreV1().PersistentVolumeClaims(p.name).DeleteCollection(p.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}))
	p.eventually(func(ctx context.Context) error {
		volumes, err := p.volumes(ctx, p.name)
		if err == nil && len(volumes) > 0 {
			err = fmt.Errorf("%d volumes are left", len(volumes))
		}
		return err
	})
	// Their images are in the trash until then.
	p.must(rig.ImagesMatchVolumes(p.Context(), p.name))
}

// changing matches a log line about a call that changes something in Ceph.
var changing = regexp.MustCompile(`"Called librbd".* call="(create|set metadata of|grow|move to the trash|remove|remove trashed|hand over trashed)".* duration="([^"]+)"`)

// A leader that is halted for longer than its lease, and continues when another one
// leads, changes nothing more and exits.
func TestPausedLeader(t *testing.T) {
	t.Parallel()
	const leaseDuration = 3 * time.Second
	p := newPair(t, "-worker-threads=1", "-leader-election-lease-duration="+leaseDuration.String(),
		"-leader-election-renew-deadline=2s", "-leader-election-retry-period=500ms")
	before := p.spec()
	claims := p.burst(100)

	p.must(p.first.Pause(t.Context()))
	began := time.Now()
	said := len(log(t, p.first))
	p.takenOver(before)
	// Most claims are not served yet: they are in its queue.
	halted := time.Since(began)
	p.must(p.first.Resume())
	select {
	case <-p.first.Done():
	case <-time.After(patience):
		t.Fatal("it runs on, though another leads")
	}
	after := log(t, p.first)[said:]
	if p.first.ExitCode() != 1 || !strings.Contains(after, "the lease was lost") {
		t.Errorf("it ended with %d, want 1 and a reason in the log", p.first.ExitCode())
	}
	for _, line := range changing.FindAllStringSubmatch(after, -1) {
		// A call that librbd is already executing can't be called back.
		if duration, err := time.ParseDuration(line[2]); err != nil || duration < halted {
			t.Errorf("it went on to work: %s", line[0])
		}
	}
	p.settled(claims)
}

// When a leader is killed, another one leads within the lease duration and 3 s.
func TestKilledLeader(t *testing.T) {
	t.Parallel()
	const leaseDuration = 4 * time.Second
	p := newPair(t, "-leader-election-lease-duration="+leaseDuration.String(),
		"-leader-election-renew-deadline=3s", "-leader-election-retry-period=800ms")
	before := p.spec()
	claims := p.burst(30)

	killed := time.Now()
	p.first.Kill()
	took := p.takenOver(before).AcquireTime.Sub(killed)
	t.Logf("another replica leads %.1f s after the end of the first", took.Seconds())
	if took > leaseDuration+3*time.Second {
		t.Errorf("another replica leads after %v, want at most %v and 3 s", took, leaseDuration)
	}
	p.settled(claims)
}

// A leader that is told to stop gives its lease back, and the next one takes it within 2
// s, with the default retry period.
func TestStoppedLeader(t *testing.T) {
	t.Parallel()
	p := newPair(t)
	before := p.spec()
	claims := p.burst(30)
	p.must(p.first.Stop()) // status 0
	stopped := time.Now()
	took := p.takenOver(before).AcquireTime.Sub(stopped)
	t.Logf("another replica leads %.1f s after the end of the first", took.Seconds())
	if took > 2*time.Second {
		t.Errorf("another replica leads after %v, want at most 2 s", took)
	}
	p.settled(claims)
}
