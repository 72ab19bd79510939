// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// goodKey has the form of a cephx key; no cluster has it.
func goodKey() string {
	raw := append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0}, []byte("sixteen secrets!")...)
	return base64.StdEncoding.EncodeToString(raw)
}

func secret(kind corev1.SecretType, data map[string]string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Type: kind, Data: map[string][]byte{}}
	for k, v := range data {
		s.Data[k] = []byte(v)
	}
	return s
}

// FakeConnector fails with err. Tests that do not connect leave that nil.
type FakeConnector struct{ err error }

func (f FakeConnector) Connect(context.Context, rbd.Credentials) (rbd.Cluster, error) {
	return nil, f.err
}

func newAccess(t *testing.T, client *fake.Clientset, connectErr error) *access.Access {
	t.Helper()
	a, err := access.New(access.Config{Secrets: client.CoreV1(), Connector: FakeConnector{connectErr}})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestReadKey(t *testing.T) {
	ref := volume.SecretRef{Namespace: "ns", Name: "s"}
	for _, test := range []struct {
		name    string
		secret  *corev1.Secret
		wantErr error
		want    string // part of the error
	}{
		{"as it should be", secret(access.TypeRBD, map[string]string{"key": goodKey()}), nil, ""},
		{"made with echo: a new line at the end", secret("Opaque", map[string]string{"key": " " + goodKey() + "\r\n"}), nil, ""},
		{"other entries do not matter", secret("Opaque", map[string]string{"key": goodKey(), "more": "x"}), nil, ""},
		{"no secret", nil, access.ErrSecretNotFound, `secret "ns/s": secret does not exist: create it`},
		{"no entry", secret("Opaque", map[string]string{"Key": goodKey()}), rbd.ErrInvalidKey, `has no entry "key": store the key under that name`},
		{"empty", secret("Opaque", map[string]string{"key": "\n"}), rbd.ErrInvalidKey, `secret "ns/s", entry "key": malformed key: it is empty`},
		{"encoded twice", secret("Opaque", map[string]string{"key": base64.StdEncoding.EncodeToString([]byte(goodKey()))}), rbd.ErrInvalidKey, "malformed key"},
		{"a password", secret("Opaque", map[string]string{"key": "hunter2-hunter2"}), rbd.ErrInvalidKey, "it is not base64"},
	} {
		t.Run(test.name, func(t *testing.T) {
			client := fake.NewClientset()
			if test.secret != nil {
				client = fake.NewClientset(test.secret)
			}
			key, err := newAccess(t, client, nil).ReadKey(t.Context(), ref)
			if test.wantErr == nil {
				if err != nil || key.Reveal() != goodKey() {
					t.Fatalf("got %v, which is not the key, or %v", key, err)
				}
				return
			}
			if !errors.Is(err, test.wantErr) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %v with %q", err, test.wantErr, test.want)
			}
			if test.secret != nil {
				for _, data := range test.secret.Data {
					if text := strings.TrimSpace(string(data)); text != "" && strings.Contains(err.Error(), text) {
						t.Errorf("the error holds the key: %v", err)
					}
				}
			}
		})
	}
}

func TestReadKeyForbidden(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), "s", errors.New("RBAC"))
	})
	_, err := newAccess(t, client, nil).ReadKey(t.Context(), volume.SecretRef{Namespace: "ns", Name: "s"})
	const want = `the provisioner needs a Role with get on it in namespace "ns", as in examples/rbac-extra-namespace.yaml`
	if !errors.Is(err, access.ErrSecretForbidden) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %v with %q", err, access.ErrSecretForbidden, want)
	}
}

func TestCheckUserSecret(t *testing.T) {
	for _, test := range []struct {
		name        string
		secret      *corev1.Secret
		wantWarning string
		wantErr     string
	}{
		{"as it should be", secret(access.TypeRBD, map[string]string{"key": goodKey()}), "", ""},
		{"kubelet takes any entry, so its name does not matter", secret(access.TypeRBD, map[string]string{"userKey": goodKey()}), "", ""},
		{"another type works, with a warning", secret("Opaque", map[string]string{"key": goodKey()}),
			`Warning UserSecretType secret "ns/s" is of type "Opaque": Kubernetes documents "kubernetes.io/rbd" for the user's secret`, ""},
		{"so does a later type of key", secret(access.TypeRBD, map[string]string{"userKey": rbdtest.NewAES256KKey().Reveal()}), "Warning UserKeyType secret \"ns/s\" has a key of type aes256k: " +
			"nodes with Linux before 7.0 can't map images with it; if there are any, make one of type aes: ceph mon set auth_allowed_ciphers aes,aes256k && " +
			"until ceph auth rotate client.kube --key-type aes; do sleep 1; done && kubectl -n ns patch secret s " +
			`-p '{"stringData":{"userKey":"'$(ceph auth get-key client.kube)'"}}'`, ""},
		{"two entries", secret(access.TypeRBD, map[string]string{"key": goodKey(), "x": "y"}), "", "must hold exactly one entry"},
		{"no entry", secret(access.TypeRBD, nil), "", "must hold exactly one entry"},
		{"no key", secret(access.TypeRBD, map[string]string{"key": "x"}), "", "malformed key"},
		{"Ceph ignores line feeds before the key", secret(access.TypeRBD, map[string]string{"key": "\n\n" + goodKey()}), "", ""},
		{"Ceph ignores what follows the key", secret(access.TypeRBD, map[string]string{"key": goodKey() + " \t\r\n\u00a0"}), "", ""},
		{"a blank before the key", secret(access.TypeRBD, map[string]string{"userKey": " " + goodKey()}), "",
			`secret "ns/s", entry "userKey": malformed key: white space precedes it, and kubelet takes it as it is: ` +
				"delete the secret, and make it anew with kubectl -n ns create secret generic s --type=kubernetes.io/rbd " +
				`--from-literal=key="$(ceph auth get-key client.kube)"`},
		{"a tab before the key", secret(access.TypeRBD, map[string]string{"key": "\t" + goodKey()}), "", "white space precedes it"},
		{"a blank and a line feed before it", secret(access.TypeRBD, map[string]string{"key": "\n " + goodKey() + "\n"}), "", "white space precedes it"},
		{"a line end of Windows before it", secret(access.TypeRBD, map[string]string{"key": "\r\n" + goodKey()}), "", "white space precedes it"},
		{"a no-break space before it", secret(access.TypeRBD, map[string]string{"key": "\u00a0" + goodKey()}), "", "white space precedes it"},
		{"a byte order mark before it", secret(access.TypeRBD, map[string]string{"key": "\ufeff" + goodKey()}), "", "malformed key: it is not base64"},
	} {
		t.Run(test.name, func(t *testing.T) {
			a := newAccess(t, fake.NewClientset(test.secret), nil)
			events, err := a.CheckUserSecret(t.Context(), volume.SecretRef{Namespace: "ns", Name: "s"}, "kube")
			warning := ""
			for _, e := range events {
				warning += strings.Join([]string{e.Type, e.Reason, e.Text}, " ")
			}
			if diff := cmp.Diff(test.wantWarning, warning); diff != "" {
				t.Errorf("warning (-want +got):\n%s", diff)
			}
			if (err == nil) != (test.wantErr == "") || err != nil && !strings.Contains(err.Error(), test.wantErr) {
				t.Errorf("error: got %v, want %q", err, test.wantErr)
			}
			if err != nil && strings.Contains(err.Error(), goodKey()) {
				t.Errorf("the error has the key: %v", err)
			}
		})
	}
}

// The node plugin is handed the whole secret, and takes one entry of it.
func TestCheckStageSecret(t *testing.T) {
	for _, test := range []struct {
		name, want string // in the error
		secret     *corev1.Secret
		events     int
	}{
		{"as it should be", "", secret(access.TypeRBD, map[string]string{"key": goodKey()}), 0},
		{"of another type, with more, and with blanks around the key", "", secret("Opaque", map[string]string{"key": " " + goodKey() + "\r\n", "x": "y"}), 0},
		{"a key that not all nodes can use", "", secret(access.TypeRBD, map[string]string{"key": rbdtest.NewAES256KKey().Reveal()}), 1},
		{"under another name", `malformed key: secret "ns/s" has no entry "key": store the key under that name`,
			secret(access.TypeRBD, map[string]string{"userKey": goodKey()}), 0},
		{"no key", `secret "ns/s", entry "key": malformed key`, secret(access.TypeRBD, map[string]string{"key": "x"}), 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			events, err := newAccess(t, fake.NewClientset(test.secret), nil).CheckStageSecret(t.Context(), secretRef, "kube")
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if len(events) != test.events || len(events) > 0 && events[0].Reason != "UserKeyType" {
				t.Errorf("got the events %+v, want %d", events, test.events)
			}
		})
	}
}

func TestOpenSaysWhatToLookAt(t *testing.T) {
	location := volume.Location{
		Monitors: []volume.Monitor{{Host: "10.0.0.1"}}, Pool: "kube", User: "boss",
		Secret: volume.SecretRef{Namespace: "ns", Name: "s"},
	}
	client := fake.NewClientset(secret("Opaque", map[string]string{"key": rbdtest.NewKeyOfType(2, 32).Reveal()}))
	for _, test := range []struct {
		err  error
		want string
	}{
		{rbd.ErrPermissionDenied, `permission denied: check that the user exists, that secret "ns/s" holds its key, and that its caps have mon 'profile rbd'`},
		{rbd.ErrInvalidKey, `malformed key: check that the user exists, that secret "ns/s" holds its key, and that its caps have mon 'profile rbd'`},
		{rbd.ErrKeyType, "this program can't use a key of this type: make one of type aes: ceph mon set auth_allowed_ciphers aes,aes256k && " +
			"until ceph auth rotate client.boss --key-type aes; do sleep 1; done && kubectl -n ns patch secret s " +
			`-p '{"stringData":{"key":"'$(ceph auth get-key client.boss)'"}}'`},
		{rbd.ErrUnreachable, "no monitor answered: check the monitors' addresses in the StorageClass, that Ceph is up and, if it is, the key"},
	} {
		_, err := newAccess(t, client, test.err).Open(t.Context(), location)
		if !errors.Is(err, test.err) || err.Error() != test.want {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
	// Commands for one type would take the keys of another one from their users.
	client = fake.NewClientset(secret("Opaque", map[string]string{"key": rbdtest.NewKeyOfType(3, 64).Reveal()}))
	_, err := newAccess(t, client, rbd.ErrKeyType).Open(t.Context(), location)
	if want := "give client.boss a key of type aes, and store it in the secret"; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

// TestAdminOfCephKeepsItsKey: where the user is the one with which people run ceph, no
// command is advised after which they could run no more.
func TestAdminOfCephKeepsItsKey(t *testing.T) {
	location := volume.Location{Monitors: []volume.Monitor{{Host: "10.0.0.1"}}, User: "admin", Secret: secretRef}
	client := fake.NewClientset(secret("Opaque", map[string]string{"key": rbdtest.NewAES256KKey().Reveal()}))
	_, err := newAccess(t, client, rbd.ErrKeyType).Open(t.Context(), location)
	const want = "this program can't use a key of this type: make a user of its own for this, with a key of type aes, as in README.md, " +
		"and name it and a secret with its key in the StorageClass"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestExplain(t *testing.T) {
	location := volume.Location{Pool: "kube", DataPool: "kube-data", User: "boss", Secret: volume.SecretRef{Namespace: "ns", Name: "s"}}
	for _, test := range []struct {
		err  error
		want string
	}{
		{rbd.ErrTimeout, "check the health of the Ceph cluster and, if that is well, the caps of client.boss"},
		{rbd.ErrNoOSD, "check the health of the Ceph cluster; if that is well, the caps for OSDs may be missing: client.boss, with the key in secret " +
			"\"ns/s\", needs at least mon 'profile rbd', osd 'profile rbd pool=kube, profile rbd pool=kube-data'"},
		{rbd.ErrConnectionLost, "check the health of the Ceph cluster"},
		{rbd.ErrPermissionDenied, "client.boss, with the key in secret \"ns/s\", needs at least mon 'profile rbd', osd 'profile rbd pool=kube, profile rbd pool=kube-data'"},
		{rbd.ErrNotSupported, "an erasure-coded data pool needs ceph osd pool set kube-data allow_ec_overwrites true"},
		{rbd.ErrErasureCoded, "name a replicated pool as pool in the class, and kube as dataPool"},
		{rbd.ErrPoolNotFound, "create the pool, or correct its name"},
		{rbd.ErrPoolFull, "free space, add storage, or raise the quota"},
	} {
		got := access.Explain(test.err, location)
		if !errors.Is(got, test.err) || got.Error() != test.err.Error()+": "+test.want {
			t.Errorf("got %q, want %q behind %q", got, test.want, test.err)
		}
	}
	if other := errors.New("other"); access.Explain(other, location) != other { //nolint:errorlint // the same one is meant
		t.Error("an error that needs no explanation was changed")
	}
}
