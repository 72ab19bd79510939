// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The namespace with the admin's secret is deleted, and the provisioner's right to read
// it: no one can make that secret again there. The event says what can be done.
func TestNamespaceOfSecretGone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ns, namespaces := f.name+"-secrets", rig.Kube.Client.CoreV1().Namespaces()
	_, err := namespaces.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{})
	f.must(err)
	f.secret(ns, "admin", corev1.SecretTypeOpaque, f.adminKey)
	f.apply("examples/rbac-extra-namespace.yaml", func(text string) string {
		return strings.NewReplacer("namespace: default", "namespace: "+ns, "ceph-user-secret", "admin").Replace(text)
	})
	class := f.class("a", func(c *storagev1.StorageClass) {
		c.Parameters["adminSecretName"], c.Parameters["adminSecretNamespace"] = "admin", ns
	})
	mended, dropped := f.claim("mended", class, nil), f.claim("dropped", class, nil)
	first, second := f.bound(mended), f.bound(dropped)
	f.must(namespaces.Delete(t.Context(), ns, metav1.DeleteOptions{}))
	// What was read of a secret serves for a second. A claim that can't be bound shows when
	// that is over.
	probe := f.class("probe", func(c *storagev1.StorageClass) {
		c.Parameters = maps.Clone(class.Parameters)
		c.Parameters["pool"] = "nowhere"
	})
	f.event(f.claim("probe", probe, nil), "reading the secret is not allowed")
	f.delete(mended)
	event := f.told(first, failedDelete, "reading the secret is not allowed")
	f.literally(event, "=USER", "="+f.name+"-admin", "=SECRET", "="+f.name+"-admin", "=NAMESPACE", "="+namespace)
	f.gone(first)

	f.delete(dropped)
	f.told(second, failedDelete, "reading the secret is not allowed")
	f.drop(second)
	f.literally(f.told(second, notRemoved, "while it was Released, with the policy Retain"))
	f.nothingLeft()
}

// The pool is deleted, then a claim, and the provisioner connects anew. The commands of
// the event end it. This test restarts the provisioner that others use, so it runs alone.
func TestPoolGone(t *testing.T) {
	f := newFixture(t)
	pool := f.name + "-gone"
	f.must(rig.Ceph.CreatePool(t.Context(), pool))
	f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.cephUser("admin", f.name, pool))
	claim := f.claim("data", f.class("a", func(c *storagev1.StorageClass) { c.Parameters["pool"] = pool }), nil)
	pv := f.bound(claim)
	f.must(rig.main.Stop())
	f.must(rig.Ceph.DeletePool(t.Context(), pool))
	f.delete(claim)
	f.must(rig.main.Start(t.Context()))
	f.literally(f.told(pv, failedDelete, "pool does not exist: create the pool, or correct its name; if it is gone for good, so is the image"))
	f.eventually(func(ctx context.Context) error {
		volumes, err := f.volumes(ctx, pool)
		if err == nil && len(volumes) > 0 {
			err = fmt.Errorf("volume %s is there; %s", pv.Name, f.events(ctx, pv.UID))
		}
		return err
	})
}
