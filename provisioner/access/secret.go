// SPDX-License-Identifier: Apache-2.0

package access

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// KeyEntry is the entry of an admin secret that holds the key.
const KeyEntry = "key"

// TypeRBD is the type that Kubernetes' documentation asks of a secret for rbd
// volumes.
const TypeRBD corev1.SecretType = "kubernetes.io/rbd"

// The errors about secrets that a caller decides on.
var (
	ErrSecretNotFound  = errors.New("secret does not exist")
	ErrSecretForbidden = errors.New("reading the secret is not allowed")
)

// ReadKey reads an admin user's key. White space around it is cut, since people
// make secrets with "echo KEY | base64".
//
// Errors: ErrSecretNotFound, ErrSecretForbidden, rbd.ErrInvalidKey. None holds
// the key.
func (a *Access) ReadKey(ctx context.Context, ref volume.SecretRef) (rbd.Key, error) {
	key, _, err := a.readKey(ctx, ref)
	return key, err
}

// readKey is ReadKey; shared tells that somebody else read the secret a moment
// ago.
func (a *Access) readKey(ctx context.Context, ref volume.SecretRef) (key rbd.Key, shared bool, err error) {
	secret, shared, err := a.recentSecret(ctx, ref)
	if err != nil {
		return rbd.Key{}, shared, err
	}
	data, found := secret.Data[KeyEntry]
	if !found {
		err = fmt.Errorf("%w: secret %q has no entry %q: store the key under that name",
			rbd.ErrInvalidKey, ref, KeyEntry)
	} else {
		key, err = parseKey(ref, KeyEntry, data)
	}
	if err != nil {
		a.recent.forget(ref, nil)
	}
	return key, shared, err
}

// CheckUserSecret checks the secret that kubelet will map the image with. It
// returns a warning, or an empty text, beside the error: a secret of another
// type works, but is not what kube-controller-manager and the documentation
// expect.
//
// Errors: ErrSecretNotFound, ErrSecretForbidden, rbd.ErrInvalidKey, or that it
// does not hold exactly one entry: kubelet takes whichever it meets first.
func (a *Access) CheckUserSecret(ctx context.Context, ref volume.SecretRef) (warning string, err error) {
	secret, _, err := a.recentSecret(ctx, ref)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil || warning != "" {
			a.recent.forget(ref, nil)
		}
	}()
	if n := len(secret.Data); n != 1 {
		return "", fmt.Errorf("secret %q must hold exactly one entry, the user's key: "+
			"kubelet would take any of them", ref)
	}
	for entry, data := range secret.Data {
		if _, err := parseKey(ref, entry, data); err != nil {
			return "", err
		}
	}
	if secret.Type != TypeRBD {
		return fmt.Sprintf("secret %q is of type %q: Kubernetes documents %q for the user's secret",
			ref, secret.Type, TypeRBD), nil
	}
	return "", nil
}

func parseKey(ref volume.SecretRef, entry string, data []byte) (rbd.Key, error) {
	key, err := rbd.ParseKey(strings.TrimSpace(string(data)))
	if err != nil {
		return rbd.Key{}, fmt.Errorf("secret %q, entry %q: %w: "+
			`store what "ceph auth get-key client.USER" prints`, ref, entry, err)
	}
	return key, nil
}

// recentSecret returns a secret as it is now or, while others work with it and in a
// burst, was less than secretAge ago; shared tells the latter. Nobody may change it.
func (a *Access) recentSecret(ctx context.Context, ref volume.SecretRef) (secret *corev1.Secret, shared bool, err error) {
	defer a.recent.enter(ref)()
	return a.recent.get(ctx, ref, func(ctx context.Context) (*corev1.Secret, error) { return a.readSecret(ctx, ref) })
}

func (a *Access) readSecret(ctx context.Context, ref volume.SecretRef) (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	// From verbosity 8 on, client-go logs the bodies of answers: not these.
	ctx = klog.NewContext(ctx, logr.Discard())
	secret, err := a.secrets.Secrets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
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
