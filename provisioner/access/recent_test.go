// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"context"
	"encoding/base64"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// reads counts how often secrets were asked for.
func reads(client *fake.Clientset) int {
	n := 0
	for _, action := range client.Actions() {
		if action.Matches("get", "secrets") {
			n++
		}
	}
	return n
}

func TestSecretIsReadOncePerMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(secret(access.TypeRBD, map[string]string{"key": goodKey()}))
		a := newAccess(t, client, FakeResolver{}, nil)
		ref := volume.SecretRef{Namespace: "ns", Name: "s"}
		burst := func() {
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() {
					if _, err := a.ReadKey(t.Context(), ref); err != nil {
						t.Error(err)
					}
					if _, err := a.CheckUserSecret(t.Context(), ref); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
		}
		leave := a.ShareSecret(ref)
		for want := 1; want <= 3; want++ {
			burst()
			if got := reads(client); got != want {
				t.Errorf("the secret was read %d times, want %d", got, want)
			}
			time.Sleep(2 * time.Second) // of the bubble's clock
		}
		// Once nobody works with it, and the burst is over, it is not kept.
		burst()
		leave()
		leave()
		time.Sleep(time.Second)
		for want := 5; want <= 6; want++ {
			if _, err := a.ReadKey(t.Context(), ref); err != nil {
				t.Error(err)
			}
			if got := reads(client); got != want {
				t.Errorf("the secret was read %d times, want %d", got, want)
			}
		}
		defer a.ShareSecret(ref)()
		if err := client.CoreV1().Secrets("ns").Delete(t.Context(), "s", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		// What went wrong is not kept.
		for want := 7; want <= 8; want++ {
			if _, err := a.ReadKey(t.Context(), ref); !errors.Is(err, access.ErrSecretNotFound) {
				t.Errorf("got %v, want ErrSecretNotFound", err)
			}
			synctest.Wait()
			if got := reads(client); got != want {
				t.Errorf("the secret was read %d times, want %d", got, want)
			}
		}
	})
}

// TestSecretInABurst: operations that come one after the other, and are many, share
// what is read, for a second. One that comes later reads for itself.
func TestSecretInABurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(secret(access.TypeRBD, map[string]string{"key": goodKey()}))
		a := newAccess(t, client, FakeResolver{}, nil)
		ask := func(a *access.Access, times int, pause time.Duration) int {
			before := reads(client)
			for range times {
				if _, err := a.ReadKey(t.Context(), volume.SecretRef{Namespace: "ns", Name: "s"}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(pause) // of the bubble's clock
			}
			return reads(client) - before
		}
		if got := ask(newAccess(t, client, FakeResolver{}, nil), 10, 100*time.Millisecond); got != 10 {
			t.Errorf("for 10 operations in a second, the secret was read %d times", got)
		}
		if got := ask(a, 500, 10*time.Millisecond); got < 5 || got > 25 {
			t.Errorf("for 500 operations in five seconds, the secret was read %d times", got)
		}
		time.Sleep(time.Second) // of the bubble's clock: after that it is no burst
		if got := ask(a, 2, 0); got != 2 {
			t.Errorf("for two operations after that, the secret was read %d times", got)
		}
	})
}

// TestForbiddenSecret: that a secret may not be read is known for a moment, too.
func TestForbiddenSecret(t *testing.T) {
	client := fake.NewClientset()
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), "s", errors.New("RBAC"))
	})
	a := newAccess(t, client, FakeResolver{}, nil)
	ref := volume.SecretRef{Namespace: "ns", Name: "s"}
	defer a.ShareSecret(ref)() // another operation
	for range 3 {
		if _, err := a.CheckUserSecret(t.Context(), ref); !errors.Is(err, access.ErrSecretForbidden) {
			t.Errorf("got %v, want ErrSecretForbidden", err)
		}
	}
	if got := reads(client); got != 1 {
		t.Errorf("the secret was asked for %d times", got)
	}
}

func TestSecretThatIsNoGoodIsReadAgain(t *testing.T) {
	client := fake.NewClientset(secret("Opaque", map[string]string{"key": "x"}))
	a := newAccess(t, client, FakeResolver{}, nil)
	ref := volume.SecretRef{Namespace: "ns", Name: "s"}
	defer a.ShareSecret(ref)()
	if _, err := a.ReadKey(t.Context(), ref); !errors.Is(err, rbd.ErrInvalidKey) {
		t.Errorf("got %v, want ErrInvalidKey", err)
	}
	if _, err := a.CheckUserSecret(t.Context(), ref); !errors.Is(err, rbd.ErrInvalidKey) {
		t.Errorf("got %v, want ErrInvalidKey", err)
	}
	mended := secret("Opaque", map[string]string{"key": goodKey()})
	if _, err := client.CoreV1().Secrets("ns").Update(t.Context(), mended, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ReadKey(t.Context(), ref); err != nil {
		t.Error(err)
	}
}

// FakePickyConnector takes one key, as a cluster does, and says so by failing
// otherwise: these tests need no cluster behind it.
type FakePickyConnector struct{ key string }

var errTaken = errors.New("the key is right")

func (f *FakePickyConnector) Connect(_ context.Context, creds rbd.Credentials) (rbd.Cluster, error) {
	if creds.Key.Reveal() != f.key {
		return nil, rbd.ErrPermissionDenied
	}
	return nil, errTaken
}

// TestRotatedKeyIsReadAtOnce replaces a key a moment after it was read.
func TestRotatedKeyIsReadAtOnce(t *testing.T) {
	raw := append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0}, []byte("another secret!!")...)
	newKey := base64.StdEncoding.EncodeToString(raw)
	client := fake.NewClientset(secret("Opaque", map[string]string{"key": goodKey()}))
	connector := &FakePickyConnector{goodKey()}
	a, err := access.New(access.Config{Secrets: client.CoreV1(), Connector: connector, Resolver: FakeResolver{}})
	if err != nil {
		t.Fatal(err)
	}
	location := volume.Location{
		Monitors: []volume.Monitor{{Host: "10.0.0.1"}}, Pool: "kube", User: "boss",
		Secret: volume.SecretRef{Namespace: "ns", Name: "s"},
	}
	defer a.ShareSecret(location.Secret)() // another operation
	if _, err := a.Open(t.Context(), location); !errors.Is(err, errTaken) {
		t.Fatal(err)
	}
	rotated := secret("Opaque", map[string]string{"key": newKey})
	if _, err := client.CoreV1().Secrets("ns").Update(t.Context(), rotated, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	connector.key = newKey
	if _, err := a.Open(t.Context(), location); !errors.Is(err, errTaken) {
		t.Errorf("after the rotation: got %v", err)
	}
	// A key that is wrong in the secret, too, is an error after one more look.
	connector.key = "neither"
	before := reads(client)
	if _, err := a.Open(t.Context(), location); !errors.Is(err, rbd.ErrPermissionDenied) {
		t.Errorf("got %v, want ErrPermissionDenied", err)
	}
	if n := reads(client) - before; n > 1 {
		t.Errorf("the secret was read %d times for one attempt", n)
	}
}
