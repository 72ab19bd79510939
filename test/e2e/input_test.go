// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// Mistakes outside the class's parameters show on the claim, in words that say what to
// correct.
func TestBadClaims(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	good := f.claim("good", class, nil)
	for _, test := range []struct {
		name   string
		change func(*corev1.PersistentVolumeClaim)
		want   string
	}{
		{"selector", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}, "the claim has a selector, which volumes made on demand can't match"},
		{"snapshot", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{
				APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "s",
			}
		}, `the claim asks for the content of "s" of kind "VolumeSnapshot.snapshot.storage.k8s.io" (spec.dataSource or spec.dataSourceRef), ` +
			"which this provisioner can't give: name a PersistentVolumeClaim of the same namespace, or make a claim without it"},
		{"populator", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr.To("example.com"), Kind: "Backup", Name: "b"}
		}, `the claim asks for the content of "b" of kind "Backup.example.com" (spec.dataSource or spec.dataSourceRef), which this provisioner can't give`},
		{"shared", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}, "access mode ReadWriteMany is not supported: supported are ReadWriteOnce and ReadOnlyMany"},
	} {
		claim := f.claim(test.name, class, test.change)
		f.event(claim, test.want)
		f.pending(claim)
	}
	f.bound(good)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
}

// Each mistake with secrets, pools and monitors shows, and once it is corrected the claim
// is bound without help.
func TestMistakesHeal(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		spoil func(*fixture, *storagev1.StorageClass)
		want  string // may hold NAME, the fixture's
		mend  func(*fixture)
	}{
		{
			"no admin secret",
			func(f *fixture, c *storagev1.StorageClass) { c.Parameters["adminSecretName"] = f.name + "-late" },
			`secret "kube-system/NAME-late": secret does not exist: create it`,
			func(f *fixture) { f.secret(namespace, f.name+"-late", corev1.SecretTypeOpaque, f.adminKey) },
		},
		{
			"an admin key that is none",
			func(f *fixture, _ *storagev1.StorageClass) {
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, "not a key")
			},
			`secret "kube-system/NAME-admin", entry "key": malformed key: it is not base64: store what "ceph auth get-key client.USER" prints`,
			func(f *fixture) {
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey)
			},
		},
		{
			"an empty admin key",
			func(f *fixture, _ *storagev1.StorageClass) {
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, "\n")
			},
			"malformed key: it is empty",
			func(f *fixture) {
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey+"\n")
			},
		},
		{
			"the key of somebody else",
			func(f *fixture, _ *storagev1.StorageClass) {
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.userKey)
			},
			`permission denied: check that the user exists, that secret "kube-system/NAME-admin" holds its key, and that its caps have mon 'profile rbd'`,
			func(f *fixture) {
				f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey)
			},
		},
		{
			"a user without caps on the pool",
			func(f *fixture, _ *storagev1.StorageClass) { f.cephUser("admin", "rbd") },
			`permission denied: client.NAME-admin, with the key in secret "kube-system/NAME-admin", ` +
				`needs at least mon 'profile rbd', osd 'profile rbd pool=NAME'`,
			func(f *fixture) { f.cephUser("admin", f.name) },
		},
		{
			"a user without caps for monitors",
			func(f *fixture, _ *storagev1.StorageClass) { f.caps("osd", "profile rbd pool="+f.name) },
			`permission denied: check that the user exists, that secret "kube-system/NAME-admin" holds its key, ` +
				`and that its caps have mon 'profile rbd'`,
			func(f *fixture) { f.cephUser("admin", f.name) },
		},
		{
			"a user whose caps for monitors do not allow reading",
			func(f *fixture, _ *storagev1.StorageClass) {
				f.caps("mon", `allow command "fsid"`, "osd", "profile rbd pool="+f.name)
			},
			`open pool "NAME": no answer in time, the outcome is unknown: check the health of the Ceph cluster ` +
				"and, if that is well, the caps of client.NAME-admin",
			func(f *fixture) { f.cephUser("admin", f.name) },
		},
		{
			"no data pool",
			func(f *fixture, c *storagev1.StorageClass) { c.Parameters["dataPool"] = f.name + "-data" },
			`data pool "NAME-data": pool does not exist: create the pool, or correct its name`,
			func(f *fixture) {
				f.must(rig.Ceph.CreatePool(f.Context(), f.name+"-data"))
				f.cephUser("admin", f.name, f.name+"-data")
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			class := f.class("a", func(c *storagev1.StorageClass) { test.spoil(f, c) })
			claim := f.claim("data", class, nil)
			f.event(claim, f.named(test.want))
			f.pending(claim)
			test.mend(f)
			f.bound(claim)
		})
	}
}

// caps gives the fixture's admin other caps.
func (f *fixture) caps(caps ...string) {
	f.Helper()
	_, err := rig.Ceph.Run(f.Context(), "ceph", append([]string{"auth", "caps", "client." + f.name + "-admin"}, caps...)...)
	f.must(err)
}

// Monitors that do not answer. The class stays wrong, since its addresses can't be
// changed: it has to be made again.
func TestUnreachableMonitors(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", func(c *storagev1.StorageClass) { c.Parameters["monitors"] = "127.0.0.1:1" })
	f.event(f.claim("dead", class, nil), "no monitor answered: check the monitors' addresses in the StorageClass, that Ceph is up")

	class = f.class("b", func(c *storagev1.StorageClass) { c.Parameters["monitors"] = "nowhere.invalid" })
	f.event(f.claim("nameless", class, nil), `no monitor has an address: monitor "nowhere.invalid"`)
}

// The user's secret is checked where RBAC allows it, by default in the provisioner's
// namespace.
func TestUserSecret(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	name := f.name + "-user"
	class := f.class("a", func(c *storagev1.StorageClass) {
		c.Parameters["userSecretName"] = name
		c.Parameters["userSecretNamespace"] = namespace
	})
	secrets := rig.Kube.Client.CoreV1().Secrets(namespace)
	claim := f.claim("data", class, nil)
	f.event(claim, f.named(`user's secret "kube-system/NAME-user": secret does not exist: create it`))

	secret, err := secrets.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Data:       map[string][]byte{"key": []byte(f.userKey), "more": []byte("x")},
	}, metav1.CreateOptions{})
	f.must(err)
	f.event(claim, f.named(`secret "kube-system/NAME-user" must hold exactly one entry`))

	delete(secret.Data, "more")
	_, err = secrets.Update(t.Context(), secret, metav1.UpdateOptions{})
	f.must(err)
	pv := f.bound(claim)
	want := corev1.SecretReference{Namespace: namespace, Name: name}
	if got := pv.Spec.RBD.SecretRef; got == nil || *got != want {
		t.Errorf("the volume's secret: got %v, want %v", got, want)
	}
	f.event(claim, f.named(`secret "kube-system/NAME-user" is of type "Opaque"`))
	f.must(secrets.Delete(t.Context(), name, metav1.DeleteOptions{}))
}

// With the Role of examples/rbac-extra-namespace.yaml, the user's secret is
// checked in another namespace too.
func TestUserSecretInExtraNamespace(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.apply("examples/rbac-extra-namespace.yaml", func(text string) string {
		return strings.NewReplacer("namespace: default", "namespace: "+f.name, "ceph-user-secret", "user").Replace(text)
	})
	f.must(rig.Kube.Client.CoreV1().Secrets(f.name).Delete(t.Context(), "user", metav1.DeleteOptions{}))
	claim := f.claim("data", f.class("a", nil), nil)
	f.event(claim, f.named(`user's secret "NAME/user": secret does not exist`))
	f.secret(f.name, "user", "kubernetes.io/rbd", f.userKey)
	f.bound(claim)
}
