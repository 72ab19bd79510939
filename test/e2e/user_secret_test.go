// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// White space around the user's key is refused where Ceph refuses it in the option with
// which kubelet gives it the key, and nowhere else.
func TestWhiteSpaceAroundUserKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	image := f.bound(f.claim("data", class, nil)).Spec.RBD.RBDImage
	// Ceph prints a key that it can't read: this one is in no secret.
	other, err := rig.Ceph.CreateUser(t.Context(), f.name+"-other", "mon", "profile rbd", "osd", "profile rbd pool="+f.name)
	f.must(err)
	for n, test := range []struct {
		name, before, behind string
		refused              bool
	}{
		{"a blank before it", " ", "", true},
		{"a tab before it", "\t", "", true},
		{"a no-break space before it", "\u00a0", "", true},
		{"a line end of Windows before it", "\r\n", "", true},
		{"a line feed before it", "\n", "", false},
		{"white space behind it", "", " \t\u00a0\r\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := f.in(t)
			_, err := rig.Ceph.Run(t.Context(), "rbd", "status", f.name+"/"+image, "--id", f.name+"-other", "--key="+test.before+other+test.behind)
			if (err != nil) != test.refused {
				t.Errorf("Ceph refuses it: %v, want %v", err != nil, test.refused)
			}
			name := fmt.Sprintf("%s-user-%d", f.name, n)
			f.secret(namespace, name, "kubernetes.io/rbd", test.before+f.userKey+test.behind)
			class := f.class(fmt.Sprint(n), func(c *storagev1.StorageClass) {
				c.Parameters["userSecretName"], c.Parameters["userSecretNamespace"] = name, namespace
			})
			claim := f.claim(fmt.Sprint("data-", n), class, nil)
			if test.refused {
				f.event(claim, fmt.Sprintf(`user's secret "%s/%s", entry "key": malformed key: white space precedes it, and kubelet takes it as it is: `+
					"delete the secret, and make it anew with kubectl -n %[1]s create secret generic %[2]s --type=kubernetes.io/rbd", namespace, name))
				f.pending(claim)
				f.secret(namespace, name, "kubernetes.io/rbd", f.userKey)
			}
			f.bound(claim)
			f.must(rig.Kube.Client.CoreV1().Secrets(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}))
		})
	}
}

// Where the provisioner may not read the user's secret, by default in all namespaces but
// its own, the claim says once what Pods will need. It is bound all the same.
func TestUserSecretThatMayNotBeRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.must(rig.Kube.Client.CoreV1().Secrets(f.name).Delete(t.Context(), "user", metav1.DeleteOptions{}))
	// The first attempts fail, and do not say it.
	class := f.class("a", func(c *storagev1.StorageClass) { c.Parameters["dataPool"] = f.name + "-data" })
	claim := f.claim("data", class, nil)
	f.event(claim, "pool does not exist")
	if events := f.events(t.Context(), claim.UID); strings.Contains(events, "UserSecret") {
		t.Errorf("before the volume is made, got %s", events)
	}
	f.must(rig.Ceph.CreatePool(t.Context(), f.name+"-data"))
	f.cephUser("admin", f.name, f.name+"-data")
	f.bound(claim)
	advice := f.named(`Normal UserSecretNotChecked (ceph.com/rbd, 1 times): it is not known whether secret "NAME/user" exists and holds a key, ` +
		"since the provisioner may not read it; Pods need it: if it is missing, " +
		`kubectl -n NAME create secret generic user --type=kubernetes.io/rbd --from-literal=key="$(ceph auth get-key client.NAME-user)"`)
	f.event(claim, advice)
}
