// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTwoRigsAtOnce(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nowhere")
	t.Setenv("CEPH_CONF", "/nowhere")
	t.Setenv("CEPH_ARGS", "--id nobody")
	var rigs [2]*Cluster
	var errs [2]error
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range rigs {
		wg.Go(func() { rigs[i], errs[i] = Start(t.Context(), Config{}) })
	}
	wg.Wait()
	for _, c := range rigs {
		if c != nil {
			t.Cleanup(func() { stop(t, c) })
		}
	}
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	t.Logf("both are ready after %.1f s", time.Since(begin).Seconds())
	if rigs[0].Ceph.FSID == rigs[1].Ceph.FSID || rigs[0].Kube.URL == rigs[1].Kube.URL {
		t.Errorf("the rigs are the same: %s, %s", rigs[0].Ceph.FSID, rigs[0].Kube.URL)
	}
	if _, err := rigs[0].Ceph.Run(t.Context(), "rbd", "create", "--size", "1", "one"); err != nil {
		t.Error(err)
	}
	if images, err := rigs[1].Ceph.Images(t.Context(), "rbd"); err != nil || len(images) != 0 {
		t.Errorf("the other rig has images %v, error %v", images, err)
	}
	t.Run("Ceph", func(t *testing.T) { t.Parallel(); testCeph(t, rigs[0].Ceph) })
	t.Run("provisioner", func(t *testing.T) { t.Parallel(); testProvisioner(t, rigs[0]) })
	t.Run("Kubernetes", func(t *testing.T) { t.Parallel(); testKubernetes(t, rigs[0].Kube) })
	t.Run("faults", func(t *testing.T) { t.Parallel(); testFaults(t, rigs[1]) })
}

// stop ends a rig and checks that nothing of it is left.
func stop(t *testing.T, c *Cluster) {
	t.Helper()
	if t.Failed() {
		c.DumpLogs(os.Stderr)
	}
	if err := c.Stop(); err != nil {
		t.Error(err)
	}
	if err := nothingLeft(c.Dir); err != nil {
		t.Error(err)
	}
}

func testKubernetes(t *testing.T, k *Kubernetes) {
	ctx := t.Context()
	if !strings.HasPrefix(k.Version, "v1.") {
		t.Errorf("the API server says it is %q", k.Version)
	}
	if out, err := k.Kubectl(ctx, "", "version"); err != nil || !strings.Contains(out, "Server Version: "+k.Version) {
		t.Errorf("kubectl version: %v\n%s", err, out)
	}
	// Controllers bind a claim to a volume, protect both, and empty a namespace.
	for _, object := range []string{`
apiVersion: v1
kind: Namespace
metadata: {name: binding}
`, `
apiVersion: v1
kind: PersistentVolume
metadata: {name: binding}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  nfs: {server: 192.0.2.1, path: /}
`, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim, namespace: binding}
spec:
  storageClassName: ""
  volumeName: binding
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
`} {
		if _, err := k.Kubectl(ctx, object, "apply", "-f", "-"); err != nil {
			t.Fatal(err)
		}
		// If the controller sees a claim before its volume, the claim waits 15 s for the
		// next full pass.
		eventually(t, func(ctx context.Context) error {
			volumes, err := k.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
			if err == nil && len(volumes.Items) > 0 && volumes.Items[0].Status.Phase == corev1.VolumePending {
				err = errors.New("the volume is not available yet")
			}
			return err
		})
	}
	eventually(t, func(ctx context.Context) error {
		claim, err := k.Client.CoreV1().PersistentVolumeClaims("binding").Get(ctx, "claim", metav1.GetOptions{})
		if err != nil {
			return err
		}
		capacity := claim.Status.Capacity[corev1.ResourceStorage]
		if claim.Status.Phase != corev1.ClaimBound || capacity.Cmp(resource.MustParse("1Gi")) != 0 || len(claim.Finalizers) == 0 {
			return fmt.Errorf("claim is %s, capacity %s, finalizers %v", claim.Status.Phase, capacity.String(), claim.Finalizers)
		}
		return nil
	})
	if _, err := k.Kubectl(ctx, "", "delete", "namespace/binding", "pv/binding", "--timeout=60s"); err != nil {
		t.Error(err)
	}
}

func testCeph(t *testing.T, ceph *Ceph) {
	ctx := t.Context()
	key, err := ceph.CreateUser(ctx, "kube", "mon", "profile rbd", "osd", "profile rbd pool=rbd")
	if err != nil || len(key) != 40 {
		t.Fatalf("CreateUser: %v, key of %d characters", err, len(key))
	}
	again, err := ceph.CreateUser(ctx, "kube", "mon", "profile rbd")
	if err != nil || again != key {
		t.Errorf("the key changed with the caps: %v", err)
	}
	if err := errors.Join(ceph.DeleteUser(ctx, "kube"), ceph.DeleteUser(ctx, "kube")); err != nil {
		t.Error(err)
	}

	if err := errors.Join(ceph.CreatePool(ctx, "other"), ceph.CreatePool(ctx, "other"), ceph.CreateErasurePool(ctx, "data")); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{
		{"create", "--size", "8", "--image-feature", "layering", "--data-pool", "data", "other/image"},
		{"bench", "--io-type", "write", "--io-size", "4K", "--io-total", "1M", "other/image"},
		{"create", "--size", "8", "--image-feature", "layering", "other/gone"},
		{"trash", "mv", "other/gone"},
	} {
		if out, err := ceph.Run(ctx, "rbd", command...); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	if out, err := ceph.Run(ctx, "rados", "--pool", "data", "ls"); err != nil || !strings.Contains(out, "rbd_data") {
		t.Errorf("no data in the data pool: %v\n%s", err, out)
	}
	if images, err := ceph.Images(ctx, "other"); err != nil || !slices.Equal(images, []string{"image"}) {
		t.Errorf("images %v, error %v", images, err)
	}
	if trash, err := ceph.Trash(ctx, "other"); err != nil || !slices.Equal(trash, []string{"gone"}) {
		t.Errorf("trash %v, error %v", trash, err)
	}
	if err := errors.Join(ceph.DeletePool(ctx, "other"), ceph.DeletePool(ctx, "data")); err != nil {
		t.Error(err)
	}
}

func testProvisioner(t *testing.T, c *Cluster) {
	ctx := t.Context()
	client := c.Kube.Client
	_, err := client.CoreV1().ServiceAccounts("kube-system").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "worker"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.RbacV1().Roles("kube-system").Create(ctx, &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: "worker"},
		Rules:      []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"secrets"}}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.RbacV1().RoleBindings("kube-system").Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "worker"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "worker"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: "kube-system", Name: "worker"}},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var two [2]*Provisioner
	for i := range two {
		two[i], err = c.StartProvisioner(ctx, ProvisionerConfig{
			Binary: os.Args[0], Args: []string{"-v=4"},
			Env:       []string{roleVariable + "=provisioner", "EXTRA=word"},
			Namespace: "kube-system", ServiceAccount: "worker",
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range two {
		// It said all that before it was ready.
		text, err := os.ReadFile(p.Log)
		if want := "get configmaps: false\nget secrets: true\nextra: word\n"; err != nil || string(text) != want {
			t.Errorf("got %q, want %q: %v", text, want, err)
		}
		if err := p.Stop(); err != nil || p.ExitCode() != 0 {
			t.Errorf("Stop: %v, exit code %d", err, p.ExitCode())
		}
	}
	if two[0].Kubeconfig == two[1].Kubeconfig || two[0].Log == two[1].Log || two[0].URL == two[1].URL {
		t.Errorf("both use %s, %s and %s", two[0].Kubeconfig, two[0].Log, two[0].URL)
	}
}

// testFaults pauses, resumes and restarts every daemon of a rig and checks that nothing
// was lost.
func testFaults(t *testing.T, c *Cluster) {
	ctx := t.Context()
	if _, err := c.Ceph.Run(ctx, "rbd", "create", "--size", "8", "kept"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Kube.Kubectl(ctx, "", "create", "configmap", "kept"); err != nil {
		t.Fatal(err)
	}
	image := func(ctx context.Context) error { _, err := c.Ceph.Run(ctx, "rbd", "info", "kept"); return err }
	object := func(ctx context.Context) error {
		_, err := c.Kube.Client.CoreV1().ConfigMaps("default").Get(ctx, "kept", metav1.GetOptions{})
		return err
	}
	for _, test := range []struct {
		daemon *Daemon
		// works needs the daemon.
		works func(context.Context) error
	}{
		{c.Ceph.Mon, func(ctx context.Context) error { _, err := c.Ceph.Run(ctx, "ceph", "mon", "stat"); return err }},
		{c.Ceph.Mgr, func(ctx context.Context) error { _, err := c.Ceph.Run(ctx, "ceph", "rbd", "task", "list"); return err }},
		{c.Ceph.OSD, image},
		{c.Kube.Etcd, object},
		{c.Kube.APIServer, object},
		{c.Kube.ControllerManager, func(ctx context.Context) error { return c.Kube.ControllerManager.ready(ctx) }},
	} {
		begin := time.Now()
		name := test.daemon.Name
		if err := test.daemon.Pause(ctx); err != nil {
			t.Error(err)
		}
		brief, cancel := context.WithTimeout(ctx, time.Second)
		if err := test.works(brief); err == nil {
			t.Errorf("%s is paused and answers", name)
		}
		cancel()
		if err := test.daemon.Resume(); err != nil {
			t.Error(err)
		}
		eventually(t, test.works)
		resumed := time.Since(begin)
		if err := test.daemon.Restart(ctx); err != nil {
			t.Error(err)
		}
		restarted := time.Since(begin) - resumed
		eventually(t, image)
		eventually(t, object)
		t.Logf("%s: paused and resumed %.1f s, restarted %.1f s", name, resumed.Seconds(), restarted.Seconds())
	}
}
