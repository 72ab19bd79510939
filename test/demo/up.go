// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"ceph.com/rbd-provisioner/test/cluster"
)

const binary = "bin/rbd-provisioner"

// up starts the demo, or says how to use the one that runs. If it fails or is
// interrupted, nothing is left behind.
func up(ctx context.Context, out io.Writer, dir string, node bool) error {
	unlock, err := lock(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer unlock()
	if running, err := alreadyUp(out, dir); err != nil || running {
		return err
	}
	c, err := start(ctx, out, dir, node)
	if err == nil {
		return c.Detach()
	}
	if _, statErr := os.Stat(dir); ctx.Err() != nil && errors.Is(statErr, os.ErrNotExist) {
		return errors.New("interrupted; nothing is left behind")
	}
	return err
}

// lock keeps a second "make demo" from taking a starting demo for one that was cut off.
// It locks the folder itself, so no file is left, and the lock ends with the process.
func lock(folder string) (unlock func(), err error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("lock the demo: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // the lock says enough
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.New(`another "make demo" is starting; wait for it, or end it with "make demo-down"`)
		}
		return nil, fmt.Errorf("lock the demo: %w", err)
	}
	return func() { _ = f.Close() }, nil // closing unlocks, and nothing was written
}

// start starts the demo as a rig that ends with this process.
func start(ctx context.Context, out io.Writer, dir string, node bool) (*cluster.Cluster, error) {
	if _, err := os.Stat(binary); err != nil {
		return nil, fmt.Errorf("find the provisioner: %w: run \"make demo\", in the root of the checkout", err)
	}
	steps := &steps{out: out, begin: time.Now()}
	kubernetes := "etcd, apiserver, controller manager"
	if node {
		kubernetes += ", scheduler, an emulated node"
	}
	steps.say("Starting Ceph (mon, mgr, osd) and Kubernetes (" + kubernetes + ")")
	cfg := cluster.Config{Dir: dir, Node: node, Progress: steps.say}
	if archive := os.Getenv(archiveVariable); node && archive != "" {
		cfg.NodeImages = []string{archive}
	}
	c, err := cluster.Start(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if err := fill(ctx, c, steps); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// alreadyUp reports whether a complete demo runs, and prints how to use it. It removes
// the leftovers of one that was cut off, as by a reboot.
func alreadyUp(out io.Writer, dir string) (bool, error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	pids, err := cluster.Processes(dir)
	if err != nil {
		return false, err
	}
	text, err := os.ReadFile(filepath.Join(dir, instructionsFile))
	if err != nil || len(pids) == 0 {
		return false, cluster.Remove(dir)
	}
	_, err = fmt.Fprintf(out, "The demo is running already\n%s", text)
	return true, err
}

// fill makes a volume on the fresh cluster, as a user would, and, with a node, a Pod that
// uses it. It shows them and prints what to do next.
func fill(ctx context.Context, c *cluster.Cluster, steps *steps) error {
	steps.say("Applying rbac/")
	if _, err := c.Kube.Kubectl(ctx, "", "apply", "-f", "rbac/", "-f", "examples/rbac-extra-namespace.yaml"); err != nil {
		return err
	}
	if err := applyPlugin(ctx, c, steps); err != nil {
		return err
	}
	class, err := storageClass("examples/storageclass.yaml", c.Ceph.MonitorV1)
	if err != nil {
		return err
	}
	steps.say("Making the secrets and the StorageClass " + class.Name)
	if err := createSecrets(ctx, c, class.Parameters); err != nil {
		return err
	}
	if _, err := c.Kube.Client.StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create StorageClass %s: %w", class.Name, err)
	}

	steps.say("Starting the provisioner, with the rights that rbac/ grants")
	provisioner, err := c.StartProvisioner(ctx, cluster.ProvisionerConfig{
		Binary: binary, Namespace: metav1.NamespaceSystem, ServiceAccount: "rbd-provisioner",
	})
	if err != nil {
		return err
	}

	steps.say("Applying examples/claim.yaml")
	begin := time.Now()
	claim, err := bind(ctx, c)
	if err != nil {
		return fmt.Errorf("%w\nThe provisioner says:\n%s", err, provisioner.Tail(20))
	}
	steps.say(fmt.Sprintf("Claim %s is bound after %.1f s", claim.Name, time.Since(begin).Seconds()))
	if c.Node != nil {
		if err := waitForPlugin(ctx, c, steps); err != nil {
			return err
		}
		steps.say("Applying examples/pod.yaml, changed to stay when it has written to its volume")
		begin := time.Now()
		if err := runPod(ctx, c); err != nil {
			return err
		}
		steps.say(fmt.Sprintf("Pod %s runs after %.1f s", podName, time.Since(begin).Seconds()))
	}
	if err := show(ctx, c, steps.out, claim); err != nil {
		return err
	}
	text, err := writeInstructions(c, provisioner.URL)
	if err != nil {
		return err
	}
	_, err = io.WriteString(steps.out, text)
	return err
}

// storageClass reads the example and inserts the demo's monitor.
func storageClass(file, monitors string) (*storagev1.StorageClass, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the example class: %w", err)
	}
	class := &storagev1.StorageClass{}
	if err := yaml.UnmarshalStrict(text, class); err != nil {
		return nil, fmt.Errorf("read the example class %s: %w", file, err)
	}
	if class.Parameters["monitors"] == "" {
		return nil, fmt.Errorf("read the example class %s: it has no parameter monitors", file)
	}
	class.Parameters["monitors"] = monitors
	return class, nil
}

// createSecrets makes the two secrets that the class names, with the key of the
// demo's client.admin.
func createSecrets(ctx context.Context, c *cluster.Cluster, parameters map[string]string) error {
	key, err := c.Ceph.Key(ctx, "admin")
	if err != nil {
		return err
	}
	for _, secret := range []*corev1.Secret{
		{ObjectMeta: metav1.ObjectMeta{Name: parameters["adminSecretName"], Namespace: parameters["adminSecretNamespace"]}},
		{
			ObjectMeta: metav1.ObjectMeta{Name: parameters["userSecretName"], Namespace: metav1.NamespaceDefault},
			Type:       "kubernetes.io/rbd",
		},
	} {
		secret.Data = map[string][]byte{"key": []byte(key)}
		if _, err := c.Kube.Client.CoreV1().Secrets(secret.Namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create secret %s/%s: %w", secret.Namespace, secret.Name, err)
		}
	}
	return nil
}

// bind applies the example claim and waits until it is bound.
func bind(ctx context.Context, c *cluster.Cluster) (*corev1.PersistentVolumeClaim, error) {
	name, err := c.Kube.Kubectl(ctx, "", "apply", "-f", "examples/claim.yaml", "-o", "name")
	if err != nil {
		return nil, err
	}
	name = strings.TrimPrefix(strings.TrimSpace(name), "persistentvolumeclaim/")
	var claim *corev1.PersistentVolumeClaim
	err = cluster.Eventually(ctx, time.Minute, func(ctx context.Context) error {
		var err error
		claim, err = c.Kube.Client.CoreV1().PersistentVolumeClaims(metav1.NamespaceDefault).Get(ctx, name, metav1.GetOptions{})
		if err == nil && claim.Status.Phase != corev1.ClaimBound {
			err = fmt.Errorf("claim %s is %s", name, claim.Status.Phase)
		}
		return err
	})
	if err != nil {
		// The events say why. If there are none, the first error has to do.
		events, _ := c.Kube.Kubectl(ctx, "", "describe", "pvc", name)
		return nil, fmt.Errorf("wait for the volume: %w\n%s", err, events)
	}
	return claim, nil
}

// show prints what was made.
func show(ctx context.Context, c *cluster.Cluster, out io.Writer, claim *corev1.PersistentVolumeClaim) error {
	volume, err := c.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get volume %s: %w", claim.Spec.VolumeName, err)
	}
	pool, image := cluster.ImageOf(volume)
	if pool == "" {
		return fmt.Errorf("volume %s has no image", volume.Name)
	}
	image = pool + "/" + image
	commands := []string{"kubectl get pvc,pv", "rbd info " + image}
	if c.Node != nil {
		commands = []string{
			"kubectl get pvc,pv,pod",
			"kubectl exec " + podName + " -- cat " + podFile,
			"kubectl exec " + podName + " -- df -h " + path.Dir(podFile),
			"rbd info " + image,
			// Its watcher is the node's kernel.
			"rbd status " + image,
		}
	}
	for _, command := range commands {
		run := c.Ceph.Run
		words := strings.Fields(command)
		if words[0] == "kubectl" {
			run = func(ctx context.Context, _ string, args ...string) (string, error) {
				return c.Kube.Kubectl(ctx, "", args...)
			}
		}
		text, err := run(ctx, words[0], words[1:]...)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "\n$ %s\n%s", command, text); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(out)
	return err
}
