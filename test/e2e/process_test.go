// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/cluster"
)

// start runs another provisioner until the test ends.
func start(t *testing.T, env []string, args ...string) *cluster.Provisioner {
	t.Helper()
	p, err := startProvisioner(t.Context(), env, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-p.Done():
		default:
			if err := look(context.WithoutCancel(t.Context()), p); err != nil {
				t.Error(err)
			}
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

func log(t *testing.T, p *cluster.Provisioner) string {
	t.Helper()
	text, err := os.ReadFile(p.Log)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// leader returns the holder of the lease.
func leader(ctx context.Context) (string, error) {
	lease, err := rig.Kube.Client.CoordinationV1().Leases(namespace).Get(ctx, "ceph.com-rbd", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return ptr.Deref(lease.Spec.HolderIdentity, ""), nil
}

// Two processes run, and the second is ready and waits. When the first is stopped, the
// second leads in about two seconds and completes what was being made then. This test
// stops the provisioner that the others use, so it runs alone.
func TestHandover(t *testing.T) {
	f := newFixture(t)
	class := f.class("a", nil)
	f.bound(f.claim("before", class, nil))
	first, err := leader(t.Context())
	f.must(err)

	start(t, nil) // it becomes ready
	if now, err := leader(t.Context()); err != nil || now != first {
		t.Errorf("the leader changed from %s to %s, %v", first, now, err)
	}

	claims := make([]*corev1.PersistentVolumeClaim, 20)
	for i := range claims {
		claims[i] = f.claim(fmt.Sprintf("during-%d", i), class, nil)
	}
	f.must(rig.main.Stop()) // status 0
	stopped := time.Now()
	// It gave the lease back; the lease did not just expire.
	if now, err := leader(t.Context()); err != nil || now == first {
		t.Errorf("the lease is still that of %s, %v", now, err)
	}
	f.eventually(func(ctx context.Context) error {
		now, err := leader(ctx)
		if err == nil && (now == "" || now == first) {
			err = fmt.Errorf("the leader is still %q", now)
		}
		return err
	})
	t.Logf("another replica leads %.1f s after the end of the first", time.Since(stopped).Seconds())
	for _, claim := range claims {
		f.bound(claim)
	}
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))

	f.must(rig.main.Start(t.Context()))
}

// A process that loses its lease exits: another one may lead.
func TestLostLease(t *testing.T) {
	f := newFixture(t)
	p := start(t, []string{"PROVISIONER_NAME=example.com/lost"}, "-leader-election-namespace="+f.name,
		"-leader-election-lease-duration=3s", "-leader-election-renew-deadline=2s", "-leader-election-retry-period=500ms")
	// It may not have this lease: the right is added, and later taken away.
	f.allowLease()
	f.eventually(func(context.Context) error {
		if !strings.Contains(log(t, p), `"Leading"`) {
			return errors.New("it does not lead yet")
		}
		return nil
	})
	f.must(rig.Kube.Client.RbacV1().RoleBindings(f.name).Delete(t.Context(), "lease", metav1.DeleteOptions{}))
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatal("it runs on without the lease")
	}
	if p.ExitCode() != 1 || !strings.Contains(log(t, p), "the lease was lost") {
		t.Errorf("it ended with %d, want 1 and a reason in the log", p.ExitCode())
	}
}

// Another name, another identity, images named like volumes, no election, JSON logs:
// settings that users of the retired provisioner may have.
func TestFlags(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	name := "example.com/" + f.name
	p := start(t, []string{"PROVISIONER_NAME=" + name},
		"--id=number-two", "-use-pv-name", "-leader-election=false", "-logging-format=json", "-logtostderr")
	claim := f.claim("data", f.class("a", func(c *storagev1.StorageClass) { c.Provisioner = name }), nil)
	pv := f.bound(claim)
	if pv.Spec.RBD.RBDImage != pv.Name || pv.Annotations["rbdProvisionerIdentity"] != "number-two" {
		t.Errorf("got image %q of volume %q, identity %q", pv.Spec.RBD.RBDImage, pv.Name, pv.Annotations["rbdProvisionerIdentity"])
	}
	f.delete(claim)
	f.gone(pv)

	for _, want := range []string{
		`controller_persistentvolumeclaim_provision_total{class="` + f.name + `-a",source=""} 1`,
		// Counted after the volume is gone; twice when the library asks again, because
		// its cache lags behind.
		`controller_persistentvolume_delete_total{class="` + f.name + `-a"} `,
		"rbd_provisioner_build_info{", "process_resident_memory_bytes",
		fmt.Sprintf("rbd_provisioner_ceph_cluster_info{fsid=%q,version=%q} 1", rig.Ceph.FSID, rig.Ceph.Version),
	} {
		f.eventually(func(ctx context.Context) error {
			metrics, err := get(ctx, p.URL+"/metrics")
			if err == nil && !strings.Contains(metrics, want) {
				err = fmt.Errorf("metrics do not have %q", want)
			}
			return err
		})
	}
	for _, line := range strings.Split(strings.TrimSpace(log(t, p)), "\n") {
		if !strings.HasPrefix(line, "{") {
			t.Errorf("not JSON: %q", line)
		}
	}
	connected := fmt.Sprintf(`"msg":"Connected to Ceph","v":0,"fsid":%q,"version":%q,"monitors":`, rig.Ceph.FSID, rig.Ceph.Version)
	if n := strings.Count(log(t, p), connected); n != 1 {
		t.Errorf("the log has %q %d times, want once", connected, n)
	}
}

// The log of a start, as an administrator sees it.
func TestStartIsLogged(t *testing.T) {
	t.Parallel()
	text := log(t, rig.main)
	for _, want := range []string{`"Starting" version=`, "librados=", `"Connected to the API server" version="` + rig.Kube.Version + `"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the log does not have %q", want)
		}
	}
	if strings.Contains(text, "Permission is missing") {
		t.Error("rbac/ does not grant all that the provisioner checks for")
	}
	warned := strings.Contains(text, "WARNING: the node plugin is not installed, and Kubernetes can't mount in-tree volumes from 1.31 on")
	if want := !hasInTree(t); warned != want {
		t.Errorf("warned of Kubernetes %s: %v, want %v", rig.Kube.Version, warned, want)
	}
}

// hasInTree reports whether this Kubernetes mounts in-tree volumes.
func hasInTree(t *testing.T) bool {
	t.Helper()
	version, err := utilversion.ParseGeneric(rig.Kube.Version)
	if err != nil {
		t.Fatal(err)
	}
	return version.LessThan(utilversion.MajorMinor(1, 31))
}

// If an account has no rights, the log names each one that it lacks.
func TestMissingPermissionsAreLogged(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.eventually(func(ctx context.Context) error {
		_, err := rig.Kube.Client.CoreV1().ServiceAccounts(f.name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	p, err := rig.StartProvisioner(t.Context(), cluster.ProvisionerConfig{
		Binary: binary, Namespace: f.name, ServiceAccount: "default", NoWait: true,
	})
	f.must(err)
	t.Cleanup(p.Kill) // it waits for caches that are never filled
	for _, want := range []string{
		"list persistentvolumes", "patch persistentvolumes", "watch persistentvolumeclaims", "list storageclasses.storage.k8s.io",
		`get csidrivers.storage.k8s.io \"rbd.ceph.com\"`, "create events", fmt.Sprintf(`get secrets in namespace \"%s\"`, f.name),
		fmt.Sprintf(`create leases.coordination.k8s.io in namespace \"%s\"`, f.name),
		fmt.Sprintf(`update leases.coordination.k8s.io \"ceph.com-rbd\" in namespace \"%s\"`, f.name),
	} {
		f.eventually(func(context.Context) error {
			if text := log(t, p); !strings.Contains(text, `permission="`+want+`"`) {
				return fmt.Errorf("the log does not name %q:\n%s", want, text)
			}
			return nil
		})
	}
}
