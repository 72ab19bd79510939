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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

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
		for want := 1; want <= 3; want++ {
			burst()
			if got := reads(client); got != want {
				t.Errorf("the secret was read %d times, want %d", got, want)
			}
			time.Sleep(time.Second) // of the bubble's clock
		}
		if err := client.CoreV1().Secrets("ns").Delete(t.Context(), "s", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		// What went wrong is not kept.
		for want := 4; want <= 5; want++ {
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

func TestSecretThatIsNoGoodIsReadAgain(t *testing.T) {
	client := fake.NewClientset(secret("Opaque", map[string]string{"key": "x"}))
	a := newAccess(t, client, FakeResolver{}, nil)
	ref := volume.SecretRef{Namespace: "ns", Name: "s"}
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
