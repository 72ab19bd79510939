// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// refuse makes the API server answer reading an object with err.
func (f *fixture) refuse(kind, namespace, name string, err error) {
	f.client.PrependReactor("get", kind, func(action clienttesting.Action) (bool, runtime.Object, error) {
		get, ok := action.(clienttesting.GetAction)
		return ok && get.GetNamespace() == namespace && get.GetName() == name, nil, err
	})
}

func forbidden(name string) error {
	return apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, name, errors.New("RBAC"))
}

// fault is something that is wrong before a call.
type fault struct {
	name   string
	change func(*testing.T, *fixture)
	// wantErr is what the error wraps, or nil; want is a part of its text.
	wantErr error
	want    string
}

// TestProvisionKubernetesFaults: something goes wrong before Ceph is called.
func TestProvisionKubernetesFaults(t *testing.T) {
	down := apierrors.NewInternalError(errors.New("etcd"))
	badKey := map[string]string{"key": "hunter2-hunter2-hunter2"}
	for _, test := range []fault{
		{"a class that is wrong", func(t *testing.T, f *fixture) { f.putParameter(t, "monitors", "") }, nil, `parameter "monitors" is missing`},
		{"a claim that is wrong", func(_ *testing.T, f *fixture) { f.options.PVC.Spec.Resources.Requests = nil }, nil, "requests no storage"},
		{"a claim that can't be read", func(t *testing.T, f *fixture) {
			f.dropLive(t)
			f.refuse("persistentvolumeclaims", "apps", "data", down)
		}, nil,
			"read the claim once more: Internal error"},
		{"no admin secret", func(t *testing.T, f *fixture) { f.dropSecret(t, "kube-system", "admin") }, access.ErrSecretNotFound,
			`secret "kube-system/admin": secret does not exist: create it, or correct its name`},
		{"an admin secret that may not be read", func(_ *testing.T, f *fixture) { f.refuse("secrets", "kube-system", "admin", forbidden("admin")) },
			access.ErrSecretForbidden, `the provisioner needs a Role with get on it in namespace "kube-system"`},
		{"an admin secret that can't be read", func(_ *testing.T, f *fixture) { f.refuse("secrets", "kube-system", "admin", down) }, nil,
			`secret "kube-system/admin" can't be read: Internal error`},
		{"an admin secret without the entry", func(t *testing.T, f *fixture) {
			f.putSecret(t, "kube-system", "admin", access.TypeRBD, map[string]string{"password": rbdtest.NewKey().Reveal()})
		}, rbd.ErrInvalidKey, `has no entry "key"`},
		{"an admin secret with a password in it", func(t *testing.T, f *fixture) {
			f.putSecret(t, "kube-system", "admin", access.TypeRBD, badKey)
		}, rbd.ErrInvalidKey, `secret "kube-system/admin", entry "key": malformed key`},
		{"no user's secret", func(t *testing.T, f *fixture) { f.dropSecret(t, "apps", "user") }, access.ErrSecretNotFound,
			`user's secret "apps/user": secret does not exist`},
		{"a user's secret with two entries", func(t *testing.T, f *fixture) {
			f.putSecret(t, "apps", "user", access.TypeRBD, map[string]string{
				"key": rbdtest.NewKey().Reveal(), "old": rbdtest.NewKey().Reveal(),
			})
		}, nil, `user's secret "apps/user" must hold exactly one entry`},
		{"an empty user's secret", func(t *testing.T, f *fixture) { f.putSecret(t, "apps", "user", access.TypeRBD, nil) }, nil,
			`user's secret "apps/user" must hold exactly one entry`},
		{"a user's secret with a password in it", func(t *testing.T, f *fixture) { f.putSecret(t, "apps", "user", access.TypeRBD, badKey) },
			rbd.ErrInvalidKey, `user's secret "apps/user", entry "key": malformed key`},
		{"a user's secret that can't be read", func(_ *testing.T, f *fixture) { f.refuse("secrets", "apps", "user", down) }, nil,
			`user's secret "apps/user" can't be read: Internal error`},
		{"no monitor with an address", func(t *testing.T, f *fixture) { f.putParameter(t, "monitors", "mon-a.ceph, mon-b.ceph") }, nil,
			`no monitor has an address: monitor "mon-a.ceph": the name does not resolve; monitor "mon-b.ceph": the name does not resolve`},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			test.change(t, f)
			f.checkRefused(t, test, controller.ProvisioningNoChange)
			checkSame(t, "the number of connections", 0, f.connector.connects.Load())
		})
	}
}

// checkRefused calls Provision twice: both calls must change nothing and return the same
// error.
func (f *fixture) checkRefused(t *testing.T, test fault, want controller.ProvisioningState) {
	t.Helper()
	var texts []string
	for range 2 {
		_, state, err := f.provision(t.Context(), t)
		if err == nil || test.wantErr != nil && !errors.Is(err, test.wantErr) || !strings.Contains(err.Error(), test.want) {
			t.Fatalf("got the error %v, want %v with %q", err, test.wantErr, test.want)
		}
		checkSame(t, "the state", want, state)
		texts = append(texts, err.Error())
	}
	checkSame(t, "the second text", texts[0], texts[1])
	f.checkNothing(t)
}

func TestProvisionCephFaults(t *testing.T) {
	const noChange, background = controller.ProvisioningNoChange, controller.ProvisioningInBackground
	for _, test := range []struct {
		fault
		state controller.ProvisioningState
	}{
		{fault{"no monitor answers", func(_ *testing.T, f *fixture) { f.ceph.SetUnreachable(true) }, rbd.ErrUnreachable,
			"check the monitors' addresses"}, noChange},
		{fault{"nobody is at the address", func(t *testing.T, f *fixture) { f.putParameter(t, "monitors", deadMonitor) }, rbd.ErrUnreachable,
			`connect to monitors "v1:10.0.0.9:6789" as user "admin": no monitor answered`}, noChange},
		{fault{"a wrong key", func(_ *testing.T, f *fixture) { f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}) }, rbd.ErrPermissionDenied,
			`check that the user exists, that secret "kube-system/admin" holds its key`}, noChange},
		{fault{"an unknown user", func(_ *testing.T, f *fixture) { f.ceph.RemoveUser("admin") }, rbd.ErrPermissionDenied,
			`as user "admin": permission denied: check that the user exists`}, noChange},
		{fault{"a user without caps for monitors", func(t *testing.T, f *fixture) {
			f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true, NoMonitor: true}).Key)
		}, rbd.ErrPermissionDenied, `holds its key, and that its caps have mon 'profile rbd'`}, noChange},
		{fault{"a user whose caps for monitors do not allow reading", func(t *testing.T, f *fixture) {
			f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true, DeafMonitor: true}).Key)
		}, rbd.ErrTimeout, "check the health of the Ceph cluster and, if that is well, the caps of client.admin"}, noChange},
		{fault{"a user without caps for OSDs, whom they do not answer", func(t *testing.T, f *fixture) {
			f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", rbdtest.Caps{NoOSD: true}).Key)
		}, rbd.ErrNoOSD, `the caps for OSDs may be missing: client.admin, with the key in secret "kube-system/admin", ` +
			`needs at least mon 'profile rbd', osd 'profile rbd pool=rbd'`}, noChange},
		{fault{"no pool", func(t *testing.T, f *fixture) { f.putParameter(t, "pool", "missing") }, rbd.ErrPoolNotFound,
			`open pool "missing": pool does not exist: create the pool, or correct its name`}, noChange},
		{fault{"a pool that can't be opened in time", func(_ *testing.T, f *fixture) {
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallOpenPool, Err: rbd.ErrTimeout, Times: 2})
		}, rbd.ErrTimeout, "check the health of the Ceph cluster"}, noChange},
		{fault{"no right to make images", func(t *testing.T, f *fixture) {
			f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", rbdtest.Caps{}).Key)
		}, rbd.ErrPermissionDenied,
			`client.admin, with the key in secret "kube-system/admin", needs at least mon 'profile rbd', osd 'profile rbd pool=rbd'`}, noChange},
		{fault{"no right to the data pool, which the remedy must name", func(t *testing.T, f *fixture) {
			f.ceph.AddErasurePool("data", true)
			f.putParameter(t, "dataPool", "data")
			f.putKey(t, "kube-system", "admin", f.ceph.AddUser("admin", rbdtest.Caps{Pools: []string{testPool}}).Key)
		}, rbd.ErrPermissionDenied, `profile rbd pool=data`}, noChange},
		{fault{"no data pool", func(t *testing.T, f *fixture) { f.putParameter(t, "dataPool", "missing") }, rbd.ErrPoolNotFound,
			`data pool "missing": pool does not exist: create the pool, or correct its name`}, noChange},
		{fault{"a data pool that can hold no data", func(t *testing.T, f *fixture) {
			f.ceph.AddErasurePool("fixed", false)
			f.putParameter(t, "dataPool", "fixed")
		}, rbd.ErrNotSupported, "not supported by the cluster: an erasure-coded data pool needs ceph osd pool set fixed allow_ec_overwrites true"}, noChange},
		{fault{"an erasure-coded pool for the images themselves", func(t *testing.T, f *fixture) {
			f.ceph.AddErasurePool("erasure", true)
			f.putParameter(t, "pool", "erasure")
		}, rbd.ErrErasureCoded, `in pool "erasure": an erasure-coded pool can't hold images: ` +
			"name a replicated pool as pool in the class, and erasure as dataPool"}, noChange},
		{fault{"erasure-coded pools for both", func(t *testing.T, f *fixture) {
			f.ceph.AddErasurePool("erasure", true)
			f.ceph.AddErasurePool("fixed", false)
			f.putParameter(t, "pool", "erasure")
			f.putParameter(t, "dataPool", "fixed")
		}, rbd.ErrErasureCoded, "name a replicated pool as pool in the class, and erasure as dataPool"}, noChange},
		{fault{"a full pool", func(_ *testing.T, f *fixture) { f.ceph.SetFull(testPool, true) }, rbd.ErrPoolFull,
			"free space, add storage, or raise the quota"}, background},
		{fault{"a pool that fills up", func(_ *testing.T, f *fixture) {
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallCreateImage, Err: rbd.ErrPoolFull, Times: 2})
		}, rbd.ErrPoolFull, "free space, add storage, or raise the quota"}, background},
		{fault{"an intent that can't be written in time", func(_ *testing.T, f *fixture) {
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallSetNotes, Err: rbd.ErrTimeout, Times: 2})
		}, rbd.ErrTimeout, "check the health of the Ceph cluster"}, noChange},
		{fault{"only monitors of protocol 2 are left", func(t *testing.T, f *fixture) {
			f.putParameter(t, "monitors", "v2:10.0.0.1:3300, mon.ceph")
		}, nil, "no remaining monitor speaks message protocol 1 (port 6789)"}, noChange},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			test.change(t, f)
			f.checkRefused(t, test.fault, test.state)
		})
	}
}

func TestProvisionMended(t *testing.T) { synctest.Test(t, testProvisionMended) }

func testProvisionMended(t *testing.T) {
	f := newFixture(t)
	admin := f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true}).Key
	f.ceph.SetFull(testPool, true)
	for _, step := range []struct {
		want error
		mend func()
	}{
		{rbd.ErrPermissionDenied, func() { f.putKey(t, "kube-system", "admin", admin) }},
		{rbd.ErrPoolFull, func() { f.ceph.SetFull(testPool, false) }},
	} {
		if _, _, err := f.provision(t.Context(), t); !errors.Is(err, step.want) {
			t.Fatalf("got the error %v, want %v", err, step.want)
		}
		step.mend()
	}
	checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
	f.checkMade(t)
}

// TestProvisionWarnings: the volume is made, but an event warns.
func TestProvisionWarnings(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*testing.T, *fixture)
		want   []string
	}{
		{"a user's secret of another type", func(t *testing.T, f *fixture) {
			f.putSecret(t, "apps", "user", "Opaque", map[string]string{"any": rbdtest.NewKey().Reveal()})
		}, []string{`Warning UserSecretType secret "apps/user" is of type "Opaque": Kubernetes documents "kubernetes.io/rbd" for the user's secret`}},
		{"a user's secret with a key that not every kernel can use", func(t *testing.T, f *fixture) {
			f.putSecret(t, "apps", "user", access.TypeRBD, map[string]string{"any": rbdtest.NewAES256KKey().Reveal()})
		}, []string{`Warning UserKeyType secret "apps/user" has a key of type aes256k: nodes with Linux before 7.0 can't map images with it; ` +
			"if there are any, make one of type aes: ceph mon set auth_allowed_ciphers aes,aes256k && " +
			"until ceph auth rotate client.kube --key-type aes; do sleep 1; done && " +
			`kubectl -n apps patch secret user -p '{"stringData":{"any":"'$(ceph auth get-key client.kube)'"}}'`}},
		{"a user's secret with a new line behind the key", func(t *testing.T, f *fixture) {
			f.putSecret(t, "apps", "user", access.TypeRBD, map[string]string{"key": rbdtest.NewKey().Reveal() + "\n"})
		}, nil},
		{"a monitor that does not resolve beside one that does", func(t *testing.T, f *fixture) {
			f.putParameter(t, "monitors", "mon.ceph,10.0.0.1")
		}, []string{`Warning MonitorUnresolved monitor "mon.ceph": the name does not resolve`}},
		{"a monitor that does not answer beside one that does", func(t *testing.T, f *fixture) {
			f.names["mon.ceph"] = addresses("10.0.0.1")
			f.putParameter(t, "monitors", "mon.ceph")
		}, nil},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			test.change(t, f)
			checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
			f.checkMade(t)
			checkSame(t, "the events", test.want, f.sent(t))
		})
	}
}

func TestProvisionForbiddenUserSecret(t *testing.T) {
	synctest.Test(t, testProvisionForbiddenUserSecret)
}

func testProvisionForbiddenUserSecret(t *testing.T) {
	f := newFixture(t)
	f.refuse("secrets", "apps", "user", forbidden("user"))
	f.refuse("secrets", "apps", "another", forbidden("another"))
	f.refuse("secrets", "elsewhere", "user", forbidden("user"))
	said := func() (n int) {
		for _, line := range f.logged() {
			if strings.Contains(line, "The user's secret is not checked before its use") {
				n++
			}
		}
		return n
	}
	// Whoever makes claims looks after the secrets of the claim's namespace, and is told.
	advice := func(name string) []string {
		return []string{fmt.Sprintf(`Normal UserSecretNotChecked it is not known whether secret "apps/%s" exists and holds a key, `+
			"since the provisioner may not read it; Pods need it: if it is missing, kubectl -n apps create secret generic %[1]s "+
			`--type=kubernetes.io/rbd --from-literal=key="$(ceph auth get-key client.kube)"`, name)}
	}
	// An attempt that fails does not say it, so that it is said once.
	f.ceph.SetFull(testPool, true)
	if _, _, err := f.provision(t.Context(), t); !errors.Is(err, rbd.ErrPoolFull) {
		t.Errorf("got the error %v, want ErrPoolFull", err)
	}
	checkSame(t, "the events of an attempt that failed", nil, f.sent(t))
	f.ceph.SetFull(testPool, false)
	for _, step := range []struct {
		name, namespace, secret string
		want                    int
		events                  []string
	}{
		{"the first time", "", "user", 1, advice("user")},
		{"the second time", "", "user", 1, advice("user")},
		{"another secret of the namespace", "", "another", 1, advice("another")},
		{"another namespace", "elsewhere", "user", 2, nil},
		{"another namespace, the second time", "elsewhere", "user", 2, nil},
	} {
		f.putClass(t, func(c *storagev1.StorageClass) {
			c.Parameters["userSecretName"], c.Parameters["userSecretNamespace"] = step.secret, step.namespace
		})
		f.mustProvision(t)
		f.checkMade(t)
		checkSame(t, step.name+", the log lines", step.want, said())
		checkSame(t, step.name+", the events", step.events, f.sent(t))
	}
}
