// SPDX-License-Identifier: Apache-2.0

package access_test

import (
	"context"
	"encoding/base64"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	clienttesting "k8s.io/client-go/testing"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// secretRef names the Secret that secret makes.
var secretRef = volume.SecretRef{Namespace: "ns", Name: "s"}

// reads returns how often somebody read a Secret.
func reads(client *fake.Clientset) int {
	n := 0
	for _, action := range client.Actions() {
		if action.Matches("get", "secrets") {
			n++
		}
	}
	return n
}

// refuse lets the API server answer each read of a Secret with err.
func refuse(client *fake.Clientset, err error) {
	client.PrependReactor("get", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, err
	})
}

// putKey writes another key into the Secret that secret made.
func putKey(t *testing.T, client *fake.Clientset, key string) {
	t.Helper()
	changed := secret(access.TypeRBD, map[string]string{"key": key})
	if _, err := client.CoreV1().Secrets("ns").Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestSecretIsReadOnceASecond lets many goroutines read a Secret, at the same time and one
// after the other. A Secret that is wrong is not read more often.
func TestSecretIsReadOnceASecond(t *testing.T) {
	forbidden := apierrors.NewForbidden(corev1.Resource("secrets"), "s", errors.New("RBAC"))
	for _, test := range []struct {
		name   string
		key    string
		spoil  func(*testing.T, *fake.Clientset)
		wanted error
	}{
		{"it holds a key", goodKey(), func(*testing.T, *fake.Clientset) {}, nil},
		{"it holds no key", "x", func(*testing.T, *fake.Clientset) {}, rbd.ErrInvalidKey},
		{"there is none", "", func(t *testing.T, client *fake.Clientset) {
			if err := client.CoreV1().Secrets("ns").Delete(t.Context(), "s", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, access.ErrSecretNotFound},
		{"it may not be read", "", func(_ *testing.T, client *fake.Clientset) { refuse(client, forbidden) }, access.ErrSecretForbidden},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := fake.NewClientset(secret(access.TypeRBD, map[string]string{"key": test.key}))
				test.spoil(t, client)
				a := newAccess(t, client, nil)
				for half := range 6 {
					var readers sync.WaitGroup
					for range 50 {
						readers.Go(func() {
							_, err := a.ReadKey(t.Context(), secretRef)
							_, userErr := a.CheckUserSecret(t.Context(), secretRef, "kube")
							if !errors.Is(err, test.wanted) || !errors.Is(userErr, test.wanted) {
								t.Errorf("got %v and %v, want %v", err, userErr, test.wanted)
							}
						})
					}
					readers.Wait()
					if got, want := reads(client), half/2+1; got != want {
						t.Errorf("in the first %d half seconds, the secret was read %d times, want %d", half+1, got, want)
					}
					time.Sleep(time.Second / 2) // of the bubble's clock
				}
			})
		})
	}
}

// TestMendedSecret checks that a retry, which comes after a second or more, finds the
// corrected key.
func TestMendedSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(secret(access.TypeRBD, map[string]string{"key": "x"}))
		a := newAccess(t, client, nil)
		if _, err := a.ReadKey(t.Context(), secretRef); !errors.Is(err, rbd.ErrInvalidKey) {
			t.Errorf("got %v, want ErrInvalidKey", err)
		}
		putKey(t, client, goodKey())
		time.Sleep(time.Second) // of the bubble's clock
		if key, err := a.ReadKey(t.Context(), secretRef); err != nil || key.Reveal() != goodKey() {
			t.Errorf("got %v, which is not the key, or %v", key, err)
		}
	})
}

// TestSecretAfterAnOutage checks that an error that says nothing about the Secret is not
// kept.
func TestSecretAfterAnOutage(t *testing.T) {
	client := fake.NewClientset(secret(access.TypeRBD, map[string]string{"key": goodKey()}))
	a := newAccess(t, client, nil)
	chain := client.ReactionChain
	refuse(client, apierrors.NewInternalError(errors.New("etcd")))
	if _, err := a.ReadKey(t.Context(), secretRef); !apierrors.IsInternalError(err) {
		t.Errorf("got %v, want an internal error", err)
	}
	client.ReactionChain = chain
	if _, err := a.ReadKey(t.Context(), secretRef); err != nil {
		t.Error(err)
	}
}

// FakeSlowSecrets is an API server that answers once answer is closed.
type FakeSlowSecrets struct {
	corev1client.SecretInterface
	answer chan struct{}
}

func (f FakeSlowSecrets) Secrets(string) corev1client.SecretInterface { return f }

func (f FakeSlowSecrets) Get(ctx context.Context, _ string, _ metav1.GetOptions) (*corev1.Secret, error) {
	select {
	case <-f.answer:
		return secret(access.TypeRBD, map[string]string{"key": goodKey()}), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// TestSecretIsAwaitedByEachItself checks that each caller gives up when its own context
// ends, and that others who wait for the same read still get the Secret.
func TestSecretIsAwaitedByEachItself(t *testing.T) {
	for _, test := range []struct {
		name    string
		answers bool
		want    error // of the caller without a deadline
		after   time.Duration
	}{
		{"the API server answers late", true, nil, 3 * time.Second},
		{"the API server does not answer", false, context.DeadlineExceeded, access.DefaultTimeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				slow := FakeSlowSecrets{answer: make(chan struct{})}
				a, err := access.New(access.Config{Secrets: slow, Connector: FakeConnector{}})
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				hasty, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				var waiting sync.WaitGroup
				waiting.Go(func() {
					_, err := a.ReadKey(hasty, secretRef)
					if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), `secret "ns/s" can't be read`) {
						t.Errorf("got %v, want its own deadline", err)
					}
					if passed := time.Since(began); passed != time.Second {
						t.Errorf("it waited for %v", passed)
					}
				})
				synctest.Wait() // until the first caller has begun to read
				waiting.Go(func() {
					if _, err := a.ReadKey(t.Context(), secretRef); !errors.Is(err, test.want) {
						t.Errorf("got %v, want %v", err, test.want)
					}
					if passed := time.Since(began); passed != test.after {
						t.Errorf("the other waited for %v, want %v", passed, test.after)
					}
				})
				time.Sleep(3 * time.Second) // of the bubble's clock
				if test.answers {
					close(slow.answer)
				}
				waiting.Wait()
			})
		})
	}
}

// FakePickyConnector accepts one key, as a cluster does. It returns errTaken for that key,
// since these tests need no cluster behind it.
type FakePickyConnector struct{ key string }

var errTaken = errors.New("the key is right")

func (f *FakePickyConnector) Connect(_ context.Context, creds rbd.Credentials) (rbd.Cluster, error) {
	if creds.Key.Reveal() != f.key {
		return nil, rbd.ErrPermissionDenied
	}
	return nil, errTaken
}

// TestRefusedKeyIsReadAnew replaces a key a moment after it was read. One attempt fails
// with the old key; the next one reads the Secret again before the second has passed.
func TestRefusedKeyIsReadAnew(t *testing.T) {
	raw := append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0}, []byte("another secret!!")...)
	newKey := base64.StdEncoding.EncodeToString(raw)
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset(secret(access.TypeRBD, map[string]string{"key": goodKey()}))
		connector := &FakePickyConnector{goodKey()}
		a, err := access.New(access.Config{Secrets: client.CoreV1(), Connector: connector})
		if err != nil {
			t.Fatal(err)
		}
		location := volume.Location{Monitors: []volume.Monitor{{Host: "10.0.0.1"}}, Pool: "kube", User: "boss", Secret: secretRef}
		open := func(what string, want error, wantReads int) {
			t.Helper()
			if _, err := a.Open(t.Context(), location); !errors.Is(err, want) {
				t.Errorf("%s: got %v, want %v", what, err, want)
			}
			if got := reads(client); got != wantReads {
				t.Errorf("%s: the secret was read %d times so far, want %d", what, got, wantReads)
			}
		}
		open("at first", errTaken, 1)
		putKey(t, client, newKey)
		connector.key = newKey
		open("with the key as it was", rbd.ErrPermissionDenied, 1)
		open("after that", errTaken, 2)
		connector.key = "neither"
		open("with a key that is wrong", rbd.ErrPermissionDenied, 2)
		open("with the wrong key once more", rbd.ErrPermissionDenied, 3)
	})
}
