// SPDX-License-Identifier: Apache-2.0

// Package image starts the provisioner from an image that was built on another Debian than
// the usual one, with that Debian's Ceph client, beside servers of the same release. It
// needs no container runtime; test/node has the usual image in one.
package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/test/cluster"
)

const (
	// archiveVariable holds the path of the image, as hack/image/build.sh prints it.
	archiveVariable = "PROVISIONER_ARCHIVE"
	namespace       = "kube-system"
	pool            = "image"
	patience        = 90 * time.Second
)

// objects are a user's. Their verbs are the monitor's address, the admin's key and the user's.
const objects = `
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: image}
provisioner: ceph.com/rbd
parameters: {monitors: "v1:%s", pool: image, adminId: image-admin, adminSecretName: image-admin, adminSecretNamespace: kube-system, userId: image-user, userSecretName: user}
---
apiVersion: v1
kind: Secret
metadata: {name: image-admin, namespace: kube-system}
stringData: {key: "%s"}
---
apiVersion: v1
kind: Secret
metadata: {name: user, namespace: default}
type: kubernetes.io/rbd
stringData: {key: "%s"}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, namespace: default}
spec: {accessModes: [ReadWriteOnce], storageClassName: image, resources: {requests: {storage: 1Gi}}}
`

// TestImage makes and deletes a volume. With CEPH_KEYS=aes256k, only an image whose
// client is new enough can.
func TestImage(t *testing.T) {
	ctx := t.Context()
	root := unpack(t, os.Getenv(archiveVariable))
	rig, err := cluster.Start(ctx, cluster.Config{Progress: func(s string) { t.Log(s) }})
	must(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			rig.DumpLogs(t.Output())
		}
		must(t, rig.Stop())
	})
	program := enter(t, root, rig.Dir)
	said, err := exec.CommandContext(ctx, program, "-version").CombinedOutput()
	if want := " (Ceph " + rig.Ceph.Version + ")\n"; err != nil || !strings.Contains(string(said), want) {
		t.Fatalf("-version: %v, got %q, want %q in it", err, said, want)
	}
	must(t, rig.Ceph.CreatePool(ctx, pool))
	admin, err := rig.Ceph.CreateUser(ctx, "image-admin", "mon", "profile rbd", "osd", "profile rbd pool="+pool)
	must(t, err)
	user, err := rig.Ceph.CreateUser(ctx, "image-user", "mon", "profile rbd", "osd", "profile rbd pool="+pool)
	must(t, err)
	_, err = rig.Kube.Kubectl(ctx, "", "apply", "-f", "../../rbac")
	must(t, err)

	p, err := rig.StartProvisioner(ctx, cluster.ProvisionerConfig{Binary: program, Namespace: namespace, ServiceAccount: "rbd-provisioner"})
	must(t, err)
	_, err = rig.Kube.Kubectl(ctx, fmt.Sprintf(objects, rig.Ceph.MonitorV1, admin, user), "apply", "-f", "-")
	must(t, err)
	_, err = rig.Kube.Kubectl(ctx, "", "wait", "pvc/data", "--for=jsonpath={.status.phase}=Bound", "--timeout="+patience.String())
	must(t, err)
	must(t, rig.ImagesMatchVolumes(ctx, pool))
	log, err := os.ReadFile(p.Log)
	must(t, err)
	for _, want := range []string{
		fmt.Sprintf(`"Connected to Ceph" logger="ceph" fsid=%q version=%q`, rig.Ceph.FSID, rig.Ceph.Version),
		"(Ceph " + rig.Ceph.Version + ")",
	} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the log does not have %s", want)
		}
	}
	_, err = rig.Kube.Kubectl(ctx, "", "delete", "pvc", "data")
	must(t, err)
	must(t, cluster.Eventually(ctx, patience, func(ctx context.Context) error {
		volumes, err := rig.Kube.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
		if err == nil && len(volumes.Items) > 0 {
			err = errors.New("the volume is still there")
		}
		return err
	}))
	must(t, rig.ImagesMatchVolumes(ctx, pool)) // the trash is empty, too
	must(t, p.Stop())
}

// unpack returns a folder with the files of an image, of a docker archive.
func unpack(t *testing.T, archive string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "tar", "-x", "-C", dir, "-f", archive).CombinedOutput(); err != nil {
		t.Fatalf(`%s names no image: run "make test-image": %v: %s`, archiveVariable, err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	must(t, err)
	var images []struct{ Layers []string }
	must(t, json.Unmarshal(text, &images))
	root := filepath.Join(dir, "root")
	must(t, os.Mkdir(root, 0o755))
	for _, layer := range images[0].Layers {
		if out, err := exec.CommandContext(t.Context(), "tar", "-x", "-C", root, "-f", filepath.Join(dir, layer)).CombinedOutput(); err != nil {
			t.Fatalf("unpack a layer: %v: %s", err, out)
		}
	}
	return root
}

// enter returns a program that runs the provisioner of an unpacked image. It sees the
// image's files, and of this machine a folder, devices and processes. The mounts are
// those of that process alone, and go with it.
func enter(t *testing.T, root, folder string) string {
	t.Helper()
	must(t, os.MkdirAll(root+folder, 0o700))
	script := fmt.Sprintf(`#!/bin/sh
exec unshare --mount -- sh -euc '
	mount --rbind /proc "%[1]s/proc"
	mount --rbind /dev "%[1]s/dev"
	mount --bind "%[2]s" "%[1]s%[2]s"
	exec chroot "%[1]s" /usr/local/bin/rbd-provisioner "$@"' sh "$@"
`, root, folder)
	path := filepath.Join(t.TempDir(), "rbd-provisioner")
	must(t, os.WriteFile(path, []byte(script), 0o700))
	return path
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
