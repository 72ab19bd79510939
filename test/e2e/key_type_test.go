// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// Where the program's Ceph is too old for the type of the admin's key, the event says so, and
// the claim is bound once its commands were run.
func TestAdminKeyOfALaterType(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	version, err := exec.CommandContext(t.Context(), binary, "-version").Output()
	f.must(err)
	match := regexp.MustCompile(`librados (.* \(Ceph (\d+)\..*)`).FindSubmatch(version)
	if match == nil {
		t.Fatalf("no version of Ceph in %q", version)
	}
	librados, key := string(match[1]), rbdtest.NewAES256KKey()
	if string(match[2]) >= "20" { // which has two digits for years to come
		key = rbdtest.NewKeyOfType(3, 64)
	}
	useKey(key.Reveal())
	f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, key.Reveal())
	claim := f.claim("data", f.class("a", nil), nil)
	const makeKey = "ceph mon set auth_allowed_ciphers aes,aes256k && until ceph auth rotate client.NAME-admin --key-type aes; do sleep 1; done && "
	event := f.told(claim, "ProvisioningFailed", `as user "`+f.name+`-admin": this program can't use a key of this type: `+key.Type()+
		", with librados "+librados+f.named(": make one of type aes: "+makeKey+
		`kubectl -n kube-system patch secret NAME-admin -p '{"stringData":{"key":"'$(ceph auth get-key client.NAME-admin)'"}}'`))
	f.pending(claim)

	var unknown []string // to the Ceph of the rig
	if rig.Ceph.Version < "20" {
		unknown = []string{f.named(makeKey), ""}
	}
	f.literally(event, unknown...)
	f.bound(claim)
	renewed, err := rig.Ceph.Key(t.Context(), f.name+"-admin")
	f.must(err)
	useKey(renewed)
}

// A user's key that older kernels can't use is told once, however often the volume could
// not be made, and the volume is made.
func TestUserKeyOfALaterType(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.apply("examples/rbac-extra-namespace.yaml", func(text string) string {
		return strings.NewReplacer("namespace: default", "namespace: "+f.name, "ceph-user-secret", "user").Replace(text)
	})
	key := rbdtest.NewAES256KKey().Reveal()
	useKey(key)
	f.secret(f.name, "user", "kubernetes.io/rbd", key)
	f.cephUser("admin", "rbd") // not on its own pool, so the first attempts fail
	claim := f.claim("data", f.class("a", nil), nil)
	f.event(claim, "permission denied")
	if events := f.events(t.Context(), claim.UID); strings.Contains(events, "UserKeyType") {
		t.Errorf("before the volume is made, got %s", events)
	}
	f.cephUser("admin", f.name)
	f.bound(claim)
	f.event(claim, f.named(`Warning UserKeyType (ceph.com/rbd, 1 times): secret "NAME/user" has a key of type aes256k: `+
		"nodes with Linux before 7.0 can't map images with it; if there are any, make one of type aes: ceph mon set auth_allowed_ciphers"))
}
