// SPDX-License-Identifier: Apache-2.0

// Command baseline works like the retired rbd-provisioner: an "rbd" process for each
// step, the key in its arguments, the secret and the class read from the API each time,
// and the defaults of the library and of client-go. It is a model to measure against; do
// not run it for anything else.
package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	libcontroller "sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/test/bench/contender"
)

// commandTimeout is that of the retired provisioner.
const commandTimeout = 5 * time.Second

func main() {
	contender.Main(func(config *rest.Config) {
		// These are the defaults of the library and client-go, given here so that a new
		// version does not change the model.
		config.QPS, config.Burst = 5, 10
		config.WarningHandlerWithContext = rest.NoWarnings{}
	}, work)
}

func work(ctx context.Context, client kubernetes.Interface, name string) error {
	libcontroller.NewProvisionController(klog.FromContext(ctx), client, name, &byCommand{client, name},
		libcontroller.Threadiness(4),
	).Run(ctx)
	return errors.New("the control loop returned")
}

// byCommand makes and removes images with the rbd command.
type byCommand struct {
	client   kubernetes.Interface
	identity string
}

// Provision runs "rbd create".
func (b *byCommand) Provision(ctx context.Context, o libcontroller.ProvisionOptions) (*corev1.PersistentVolume, libcontroller.ProvisioningState, error) {
	p := o.StorageClass.Parameters
	key, err := b.key(ctx, p)
	if err != nil {
		return nil, libcontroller.ProvisioningFinished, err
	}
	image := "kubernetes-dynamic-pvc-" + string(o.PVC.UID)
	request := o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	const mib = 1 << 20
	size := (request.Value() + mib - 1) / mib
	if err := rbd(ctx, p, key, "create", image, "--size", strconv.FormatInt(size, 10),
		"--image-format", "2", "--image-feature", "layering"); err != nil {
		return nil, libcontroller.ProvisioningFinished, err
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        o.PVName,
			Annotations: map[string]string{"rbdProvisionerIdentity": b.identity},
		},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *o.StorageClass.ReclaimPolicy,
			AccessModes:                   o.PVC.Spec.AccessModes,
			VolumeMode:                    o.PVC.Spec.VolumeMode,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(size*mib, resource.BinarySI)},
			PersistentVolumeSource: corev1.PersistentVolumeSource{RBD: &corev1.RBDPersistentVolumeSource{
				CephMonitors: strings.Split(p["monitors"], ","),
				RBDPool:      p["pool"],
				RBDImage:     image,
				RadosUser:    p["userId"],
				SecretRef:    &corev1.SecretReference{Name: p["userSecretName"], Namespace: p["userSecretNamespace"]},
			}},
		},
	}, libcontroller.ProvisioningFinished, nil
}

// Delete runs "rbd status" and "rbd rm".
func (b *byCommand) Delete(ctx context.Context, volume *corev1.PersistentVolume) error {
	class, err := b.client.StorageV1().StorageClasses().Get(ctx, volume.Spec.StorageClassName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	key, err := b.key(ctx, class.Parameters)
	if err != nil {
		return err
	}
	image := volume.Spec.RBD.RBDImage
	if err := rbd(ctx, class.Parameters, key, "status", image); err != nil {
		return err
	}
	return rbd(ctx, class.Parameters, key, "rm", image)
}

func (b *byCommand) key(ctx context.Context, p map[string]string) (string, error) {
	secret, err := b.client.CoreV1().Secrets(p["adminSecretNamespace"]).Get(ctx, p["adminSecretName"], metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	return string(secret.Data["key"]), nil
}

// rbd runs one command. Its error leaves out the arguments, because one is the key.
func rbd(ctx context.Context, p map[string]string, key, verb, image string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "rbd", append([]string{verb, image,
		"--pool", p["pool"], "--id", p["adminId"], "-m", p["monitors"], "--key=" + key}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("rbd %s: %w: %s", verb, err, out)
	}
	return nil
}
