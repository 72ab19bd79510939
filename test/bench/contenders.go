// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/test/cluster"
)

// The contenders.
const (
	ceiling  = "ceiling"
	baseline = "baseline"
	this     = "this"
)

var allContenders = []string{ceiling, baseline, this}

func contains(list []string, name string) bool { return slices.Contains(list, name) }

const (
	// claimNamespace holds the claims.
	claimNamespace = "bench"
	// systemNamespace holds accounts and secrets. Those of the provisioner are as in
	// rbac/.
	systemNamespace = "kube-system"
	thisAccount     = "rbd-provisioner"
	otherAccount    = "bench-contender"
	adminSecret     = "bench-admin"
	userSecret      = "bench-user"
	cephUser        = "bench"
)

// contender is one of the programs that are measured.
type contender struct {
	name        string
	provisioner string
	binary      string
	account     string
	// pool is also the name of the class. It is empty for a contender without storage.
	pool string
	// rest is how long it takes until its request limit is full again.
	rest time.Duration
	// children says that it starts processes, whose use counts as its own.
	children bool
	bursts   []int
	singles  int
}

// contenders describes the contenders of the given names, in that order.
func contenders(o *options, binary, built string) []*contender {
	all := map[string]*contender{
		ceiling: {
			provisioner: "bench/ceiling", binary: filepath.Join(built, "ceiling"), account: otherAccount,
			bursts: o.Bursts, singles: o.Singles,
		},
		baseline: {
			provisioner: "bench/baseline", binary: filepath.Join(built, "baseline"), account: otherAccount,
			pool: "bench-baseline", children: true,
			// A burst of 10 at 5 a second.
			rest:   2 * time.Second,
			bursts: []int{o.BaselineBurst}, singles: o.BaselineSingles,
		},
		this: {
			provisioner: "ceph.com/rbd", binary: binary, account: thisAccount,
			pool:   "bench-this",
			bursts: o.Bursts, singles: o.Singles,
		},
	}
	var list []*contender
	for _, name := range o.Contenders {
		c := all[name]
		c.name = name
		list = append(list, c)
	}
	return list
}

// class is the name of the contender's StorageClass.
func (c *contender) class() string { return "bench-" + c.name }

// build compiles the contenders into the rig's folder, with the flags of "make build",
// for which most packages are compiled already.
func build(ctx context.Context, root, dir string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "netgo,osusergo", "-o", dir+string(filepath.Separator), "./test/bench/ceiling", "./test/bench/baseline")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the contenders: %w: %s", err, out)
	}
	return nil
}

// prepare makes what all contenders need: accounts, namespace, secrets.
func (b *bench) prepare(ctx context.Context) error {
	rbac, err := filepath.Abs(filepath.Join(b.Root, "rbac"))
	if err != nil {
		return err
	}
	if _, err := b.rig.Kube.Kubectl(ctx, "", "apply", "-f", rbac); err != nil {
		return err
	}
	core := b.rig.Kube.Client.CoreV1()
	if _, err := core.ServiceAccounts(systemNamespace).Create(ctx, &corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: otherAccount},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := b.rig.Kube.Client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: otherAccount},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: systemNamespace, Name: otherAccount}},
	}, metav1.CreateOptions{}); err != nil {
		return err
	}
	if _, err := core.Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: claimNamespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	key, err := b.rig.Ceph.CreateUser(ctx, cephUser, "mon", "profile rbd", "mgr", "profile rbd", "osd", "profile rbd")
	if err != nil {
		return err
	}
	for _, secret := range []*corev1.Secret{
		{ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: adminSecret}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: userSecret}, Type: "kubernetes.io/rbd"},
	} {
		secret.Data = map[string][]byte{"key": []byte(key)}
		if _, err := core.Secrets(secret.Namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	for _, c := range b.contenders {
		if err := b.addClass(ctx, c.class(), c.provisioner, c.pool, nil); err != nil {
			return err
		}
	}
	return nil
}

// addClass makes a pool, if it has a name, and a class for it, with more parameters if
// there are any.
func (b *bench) addClass(ctx context.Context, name, provisioner, pool string, more map[string]string) error {
	if pool != "" {
		if err := b.rig.Ceph.CreatePool(ctx, pool); err != nil {
			return err
		}
	}
	parameters := map[string]string{
		"monitors": b.rig.Ceph.MonitorV1, "pool": pool,
		"adminId": cephUser, "adminSecretName": adminSecret, "adminSecretNamespace": systemNamespace,
		"userId": cephUser, "userSecretName": userSecret, "userSecretNamespace": systemNamespace,
	}
	maps.Copy(parameters, more)
	_, err := b.rig.Kube.Client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: name},
		Provisioner: provisioner,
		Parameters:  parameters,
	}, metav1.CreateOptions{})
	return err
}

// removeClass removes a class and its pool with all that is in it.
func (b *bench) removeClass(ctx context.Context, name, pool string) error {
	if err := b.rig.Kube.Client.StorageV1().StorageClasses().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	return b.rig.Ceph.DeletePool(ctx, pool)
}

// start runs a contender.
func (b *bench) start(ctx context.Context, c *contender) (*process, error) {
	// The baseline's library does not give its lease back.
	if err := b.rig.Kube.Client.CoordinationV1().Leases(systemNamespace).
		Delete(ctx, "bench-baseline", metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	p, err := b.rig.StartProvisioner(ctx, cluster.ProvisionerConfig{
		Binary: c.binary,
		Env:    []string{"PROVISIONER_NAME=" + c.provisioner, "CEPH_CONF=" + os.DevNull},
		// With its defaults for flags and verbosity.
		Namespace: systemNamespace, ServiceAccount: c.account,
	})
	if err != nil {
		return nil, err
	}
	return b.watchProcess(p, c.children), nil
}
