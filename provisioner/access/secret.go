// SPDX-License-Identifier: Apache-2.0

package access

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

const (
	// KeyEntry is the entry of an admin secret that holds the key.
	KeyEntry = "key"
	// TypeRBD is the type that Kubernetes documents for secrets of rbd volumes.
	TypeRBD corev1.SecretType = "kubernetes.io/rbd"
	// secretAge is how long callers share what was read of a Secret. In a burst all claims
	// need the same one or two, and each read costs the API server as much as saving a
	// volume does. A retry comes no sooner, and so finds what was mended.
	secretAge = time.Second
)

// The errors about secrets on which callers decide.
var (
	ErrSecretNotFound  = errors.New("secret does not exist")
	ErrSecretForbidden = errors.New("reading the secret is not allowed")
)

// ReadKey returns a user's key, which its secret has under KeyEntry, as it was less than a second ago. Errors, none of
// which contains the key: ErrSecretNotFound, ErrSecretForbidden, rbd.ErrInvalidKey.
func (a *Access) ReadKey(ctx context.Context, ref volume.SecretRef) (rbd.Key, error) {
	secret, err := a.recentSecret(ctx, ref)
	if err != nil {
		return rbd.Key{}, err
	}
	data, found := secret.Data[KeyEntry]
	if !found {
		return rbd.Key{}, fmt.Errorf("%w: secret %q has no entry %q: store the key under that name", rbd.ErrInvalidKey, ref, KeyEntry)
	}
	return parseKey(ref, KeyEntry, data)
}

// CheckUserSecret checks the secret with which kubelet will map the image, as it was less
// than a second ago. The errors are those of ReadKey, or that the secret does not hold
// exactly one entry. user is the Ceph user whose key it should be. The events are about
// what need not keep Pods from the volume: a secret that is not of the documented type, and
// a key of a type that not all nodes can use.
func (a *Access) CheckUserSecret(ctx context.Context, ref volume.SecretRef, user string) ([]Event, error) {
	secret, err := a.recentSecret(ctx, ref)
	if err != nil {
		return nil, err
	}
	if len(secret.Data) != 1 {
		return nil, fmt.Errorf("secret %q must hold exactly one entry, the user's key: kubelet would take any of them", ref)
	}
	var events []Event
	for entry, data := range secret.Data {
		key, err := parseKey(ref, entry, data)
		if err != nil {
			return nil, err
		}
		// Ceph ignores line feeds before a key and whatever follows it, and prints a key
		// that it can't read, so that it ends in kubelet's log.
		if !bytes.HasPrefix(bytes.TrimLeft(data, "\n"), bytes.TrimSpace(data)) {
			return nil, fmt.Errorf("secret %q, entry %q: %w: white space precedes it, and kubelet takes it as it is: "+
				"delete the secret, and make it anew with %s", ref, entry, rbd.ErrInvalidKey, MakeUserSecret(ref, user))
		}
		events = append(events, checkKeyType(ref, entry, user, key)...)
	}
	if secret.Type != TypeRBD {
		events = append(events, Event{corev1.EventTypeWarning, "UserSecretType", fmt.Sprintf("secret %q is of type %q: Kubernetes documents %q for the user's secret",
			ref, secret.Type, TypeRBD)})
	}
	return events, nil
}

// CheckStageSecret is CheckUserSecret for our node plugin, which takes the entry "key", cuts
// white space around the key, and minds neither further entries nor the secret's type.
func (a *Access) CheckStageSecret(ctx context.Context, ref volume.SecretRef, user string) ([]Event, error) {
	key, err := a.ReadKey(ctx, ref)
	if err != nil {
		return nil, err
	}
	return checkKeyType(ref, KeyEntry, user, key), nil
}

// checkKeyType returns an event if not all nodes can use a key.
func checkKeyType(ref volume.SecretRef, entry, user string, key rbd.Key) []Event {
	if key.Type() == rbd.KeyTypeAES {
		return nil
	}
	return []Event{{corev1.EventTypeWarning, "UserKeyType", fmt.Sprintf("secret %q has a key of type %s: "+
		"nodes with Linux before 7.0 can't map images with it; if there are any, %s", ref, key.Type(), makeAESKey(ref, entry, user, key.Type()))}}
}

// Event is an event that a claim is to get.
type Event struct{ Type, Reason, Text string }

// MakeUserSecret returns the command that makes the secret of a Ceph user.
func MakeUserSecret(ref volume.SecretRef, user string) string {
	return fmt.Sprintf(`kubectl -n %s create secret generic %s --type=%s --from-literal=key="$(ceph auth get-key client.%s)"`,
		ref.Namespace, ref.Name, TypeRBD, user)
}

// makeAESKey says how to give a user a key that every Ceph and every kernel can use, and how
// to store it in an entry of a secret. has is the type of the key that it has.
func makeAESKey(ref volume.SecretRef, entry, user, has string) string {
	if user == "admin" {
		// Given another key, whoever runs the command ceph could no longer connect.
		return "make a user of its own for this, with a key of type aes, as in README.md, and name it and a secret with its key in the StorageClass"
	}
	if has != rbd.KeyTypeAES256K {
		// The command below would forbid keys of a type that it does not name.
		return fmt.Sprintf("give client.%s a key of type aes, and store it in the secret", user)
	}
	// It takes Ceph some seconds to allow what the first command asks for.
	return fmt.Sprintf("make one of type aes: ceph mon set auth_allowed_ciphers aes,aes256k && "+
		"until ceph auth rotate client.%s --key-type aes; do sleep 1; done && "+
		`kubectl -n %s patch secret %s -p '{"stringData":{"%s":"'$(ceph auth get-key client.%[1]s)'"}}'`,
		user, ref.Namespace, ref.Name, entry)
}

// parseKey cuts white space around the key: people make secrets with "echo KEY | base64".
func parseKey(ref volume.SecretRef, entry string, data []byte) (rbd.Key, error) {
	key, err := rbd.ParseKey(strings.TrimSpace(string(data)))
	if err != nil {
		return rbd.Key{}, fmt.Errorf(`secret %q, entry %q: %w: store what "ceph auth get-key client.USER" prints`, ref, entry, err)
	}
	return key, nil
}

// secretRead is the API server's answer about a Secret.
type secretRead struct {
	secret *corev1.Secret
	err    error
}

// recentSecret returns a Secret as it was less than secretAge ago, which callers share.
func (a *Access) recentSecret(ctx context.Context, ref volume.SecretRef) (*corev1.Secret, error) {
	reading := a.reading.DoChan(ref.String(), func() (any, error) {
		if recent, ok := a.recent.Get(ref); ok {
			return recent, nil
		}
		// Others may wait for this read: it has its own deadline, and does not end with
		// the caller that began it.
		secret, err := a.readSecret(context.WithoutCancel(ctx), ref)
		read := secretRead{secret, err}
		// Other errors are no answer: the next caller asks again.
		if err == nil || errors.Is(err, ErrSecretNotFound) || errors.Is(err, ErrSecretForbidden) {
			a.recent.Set(ref, read, secretAge)
		}
		return read, nil
	})
	select {
	case result := <-reading:
		read := result.Val.(secretRead)
		return read.secret, read.err
	case <-ctx.Done():
		return nil, fmt.Errorf("secret %q can't be read: %w", ref, context.Cause(ctx))
	}
}

func (a *Access) readSecret(ctx context.Context, ref volume.SecretRef) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	// From verbosity 8 on, client-go logs the bodies of answers: keep these out.
	ctx = klog.NewContext(ctx, logr.Discard())
	secret, err := a.config.Secrets.Secrets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, fmt.Errorf("secret %q: %w: create it, or correct its name", ref, ErrSecretNotFound)
	case apierrors.IsForbidden(err):
		return nil, fmt.Errorf("secret %q: %w: the provisioner needs a Role with get on it in namespace %q, "+
			"as in examples/rbac-extra-namespace.yaml", ref, ErrSecretForbidden, ref.Namespace)
	case err != nil:
		return nil, fmt.Errorf("secret %q can't be read: %w", ref, err)
	}
	return secret, nil
}
