// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/cluster"
)

// fixture has the objects of one test. Its name is that of its namespace and its pool,
// and the prefix of its classes' names.
type fixture struct {
	*testing.T
	name string
	// adminKey belongs to client.NAME-admin, whose caps are the least that the
	// documentation asks for; userKey to client.NAME-user.
	adminKey, userKey string
}

// newFixture makes a namespace, a pool, two Ceph users with minimal caps, and their
// secrets: "NAME-admin" in the provisioner's namespace and "user" in the test's. When the
// test ends, everything is deleted, and the pool must be empty except for the images of
// volumes that are left.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, name: "e2e-" + strings.ToLower(rand.Text()[:8])}
	ctx := t.Context()
	f.must(rig.Ceph.CreatePool(ctx, f.name))
	f.adminKey = f.cephUser("admin", f.name)
	f.userKey = f.cephUser("user", f.name)
	_, err := rig.Kube.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: f.name},
	}, metav1.CreateOptions{})
	f.must(err)
	f.secret(namespace, f.name+"-admin", corev1.SecretTypeOpaque, f.adminKey)
	f.secret(f.name, "user", "kubernetes.io/rbd", f.userKey)
	t.Cleanup(f.end)
	return f
}

// in returns the fixture for a subtest.
func (f *fixture) in(sub *testing.T) *fixture {
	in := *f
	in.T = sub
	return &in
}

// cephUser makes client.NAME-ROLE with minimal caps for pools.
func (f *fixture) cephUser(role string, pools ...string) string {
	f.Helper()
	var osd []string
	for _, pool := range pools {
		osd = append(osd, "profile rbd pool="+pool)
	}
	key, err := rig.Ceph.CreateUser(f.Context(), f.name+"-"+role, "mon", "profile rbd", "osd", strings.Join(osd, ", "))
	f.must(err)
	useKey(key)
	return key
}

// secret makes a secret with one entry, or replaces it.
func (f *fixture) secret(ns, name string, kind corev1.SecretType, key string) {
	f.Helper()
	client := rig.Kube.Client.CoreV1().Secrets(ns)
	// The type of a secret can't be changed.
	if err := client.Delete(f.Context(), name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		f.must(err)
	}
	_, err := client.Create(f.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Type:       kind,
		Data:       map[string][]byte{"key": []byte(key)},
	}, metav1.CreateOptions{})
	f.must(err)
}

// parameters are those of a class for the fixture's pool.
func (f *fixture) parameters(changes ...map[string]string) map[string]string {
	p := map[string]string{
		"monitors":             rig.Ceph.MonitorV1,
		"pool":                 f.name,
		"adminId":              f.name + "-admin",
		"adminSecretName":      f.name + "-admin",
		"adminSecretNamespace": namespace,
		"userId":               f.name + "-user",
		"userSecretName":       "user",
	}
	for _, c := range changes {
		maps.Copy(p, c)
	}
	return p
}

// class makes a StorageClass NAME-suffix, which is deleted when the test ends.
func (f *fixture) class(suffix string, change func(*storagev1.StorageClass)) *storagev1.StorageClass {
	f.Helper()
	class := &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: f.name + "-" + suffix},
		Provisioner: "ceph.com/rbd",
		Parameters:  f.parameters(),
	}
	if change != nil {
		change(class)
	}
	client := rig.Kube.Client.StorageV1().StorageClasses()
	class, err := client.Create(f.Context(), class, metav1.CreateOptions{})
	f.must(err)
	f.Cleanup(func() {
		if err := client.Delete(context.WithoutCancel(f.Context()), class.Name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
			f.must(err)
		}
	})
	return class
}

// claim makes a claim of 1Gi.
func (f *fixture) claim(name string, class *storagev1.StorageClass, change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	f.Helper()
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.name, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: ptr.To(class.Name),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("1Gi"),
			}},
		},
	}
	if change != nil {
		change(claim)
	}
	claim, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(f.name).Create(f.Context(), claim, metav1.CreateOptions{})
	f.must(err)
	return claim
}

// bound waits until a claim is bound and returns its volume.
func (f *fixture) bound(claim *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	f.Helper()
	var volume *corev1.PersistentVolume
	f.eventually(func(ctx context.Context) error {
		live, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if live.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("claim %s is %s; %s", live.Name, live.Status.Phase, f.events(ctx, live.UID))
		}
		volume, err = rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, live.Spec.VolumeName, metav1.GetOptions{})
		return err
	})
	return volume
}

// pending checks that a claim is not bound.
func (f *fixture) pending(claim *corev1.PersistentVolumeClaim) {
	f.Helper()
	live, err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(f.Context(), claim.Name, metav1.GetOptions{})
	f.must(err)
	if live.Status.Phase != corev1.ClaimPending {
		f.Errorf("claim %s is %s, want it to be pending", claim.Name, live.Status.Phase)
	}
}

// delete deletes a claim without waiting.
func (f *fixture) delete(claim *corev1.PersistentVolumeClaim) {
	f.Helper()
	f.must(rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Delete(f.Context(), claim.Name, metav1.DeleteOptions{}))
}

// gone waits until a volume does not exist any more, and its image is not in the trash
// either: the process that removes it from there may end with the test.
func (f *fixture) gone(volume *corev1.PersistentVolume) {
	f.Helper()
	f.must(f.goneBy(f.Context(), volume))
}

func (f *fixture) goneBy(ctx context.Context, volume *corev1.PersistentVolume) error {
	return cluster.Eventually(ctx, patience, func(ctx context.Context) error {
		live, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, volume.Name, metav1.GetOptions{})
		switch {
		case err == nil:
			return fmt.Errorf("volume %s is %s; %s", live.Name, live.Status.Phase, f.events(ctx, live.UID))
		case !apierrors.IsNotFound(err):
			return err
		}
		pool, image := cluster.ImageOf(volume)
		if pool == "" {
			return nil
		}
		trash, err := rig.Ceph.Trash(ctx, pool)
		if err == nil && slices.Contains(trash, image) {
			err = fmt.Errorf("image %s is in the trash", image)
		}
		return err
	})
}

// event waits for an event about an object whose message has the given text.
func (f *fixture) event(object metav1.Object, text string) {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		if events := f.events(ctx, object.GetUID()); !says(events, text) {
			return fmt.Errorf("no event says %q: %s", text, events)
		}
		return nil
	})
}

// says reports whether events have a text. The monitors of Ceph 20 mostly hang up before
// their refusal of a key is read, with message protocol 1; then none has answered, and
// operations may be told only that.
func says(events, text string) bool {
	return strings.Contains(events, text) || strings.HasPrefix(rig.Ceph.Version, "20.") &&
		strings.HasPrefix(text, "permission denied: check that the user exists") &&
		strings.Contains(events, "check the monitors' addresses in the StorageClass, that Ceph is up and, if it is, the key")
}

// events returns the events about an object as text.
func (f *fixture) events(ctx context.Context, uid any) string {
	list, err := rig.Kube.Client.CoreV1().Events("").List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("involvedObject.uid", fmt.Sprint(uid)).String(),
	})
	if err != nil {
		return err.Error()
	}
	texts := []string{"events:"}
	for _, e := range list.Items {
		texts = append(texts, fmt.Sprintf("  %s %s (%s, %d times): %s", e.Type, e.Reason, e.Source.Component, e.Count, e.Message))
	}
	return strings.Join(texts, "\n")
}

// volumes returns the PersistentVolumes whose image is in a pool.
func (f *fixture) volumes(ctx context.Context, pool string) ([]corev1.PersistentVolume, error) {
	list, err := rig.Kube.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(v corev1.PersistentVolume) bool {
		of, _ := cluster.ImageOf(&v)
		return of != pool
	}), nil
}

// image describes an image as the rbd command does.
type image struct {
	Size     int64    `json:"size"`
	Features []string `json:"features"`
	DataPool string   `json:"data_pool"`
}

func (f *fixture) image(pool, name string) image {
	f.Helper()
	var i image
	f.must(rig.Ceph.JSON(f.Context(), &i, "rbd", "info", pool+"/"+name))
	slices.Sort(i.Features)
	return i
}

// eventually waits until condition returns nil.
func (f *fixture) eventually(condition func(context.Context) error) {
	f.Helper()
	if err := cluster.Eventually(f.Context(), patience, condition); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// end deletes the test's claims and checks that nothing of them is left.
func (f *fixture) end() {
	ctx := context.WithoutCancel(f.Context())
	err := rig.Kube.Client.CoreV1().PersistentVolumeClaims(f.name).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	if err == nil {
		err = cluster.Eventually(ctx, patience, func(ctx context.Context) error {
			volumes, err := f.volumes(ctx, f.name)
			if err != nil {
				return err
			}
			for _, v := range volumes {
				if v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
					return fmt.Errorf("volume %s is %s; %s", v.Name, v.Status.Phase, f.events(ctx, v.UID))
				}
			}
			return rig.ImagesMatchVolumes(ctx, f.name)
		})
	}
	if err != nil {
		f.Errorf("after the test: %v", err)
	}
	// The rig is removed anyway: this only keeps it small.
	err = errors.Join(
		rig.Kube.Client.CoreV1().Namespaces().Delete(ctx, f.name, metav1.DeleteOptions{}),
		rig.Kube.Client.CoreV1().Secrets(namespace).DeleteCollection(ctx, metav1.DeleteOptions{},
			metav1.ListOptions{FieldSelector: "metadata.name=" + f.name + "-admin"}),
		rig.Ceph.DeletePool(ctx, f.name),
	)
	if err != nil {
		f.Errorf("clean up: %v", err)
	}
}

// named replaces NAME by the fixture's name.
func (f *fixture) named(text string) string { return strings.ReplaceAll(text, "NAME", f.name) }

// rbd runs the rbd command on the fixture's pool.
func (f *fixture) rbd(args ...string) (output string) {
	f.Helper()
	output, err := rig.Ceph.Run(f.Context(), "rbd", append([]string{"--pool", f.name}, args...)...)
	f.must(err)
	return output
}

// annotate sets annotations of a volume.
func (f *fixture) annotate(pv *corev1.PersistentVolume, annotations map[string]string) {
	f.Helper()
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations}})
	f.must(err)
	_, err = rig.Kube.Client.CoreV1().PersistentVolumes().Patch(f.Context(), pv.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	f.must(err)
}

// watch opens an image of the fixture's pool as a client, until the returned function is
// called. It returns the client's address.
func (f *fixture) watch(image string) (address string, unwatch func()) {
	f.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.Context()))
	client := exec.CommandContext(ctx, "rbd", "--conf", rig.Ceph.Conf, "watch", f.name+"/"+image)
	input, err := client.StdinPipe()
	f.must(err)
	f.must(client.Start())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = client.Wait() // its status is of no interest
	}()
	unwatch = sync.OnceFunc(func() {
		// It ends when its input does, and then gives its watch back. After a signal, the
		// watch would stay for half a minute.
		_ = input.Close()
		<-ended
		cancel()
	})
	f.Cleanup(unwatch)
	f.eventually(func(ctx context.Context) error {
		var status struct {
			Watchers []struct {
				Address string `json:"address"`
			} `json:"watchers"`
		}
		if err := rig.Ceph.JSON(ctx, &status, "rbd", "status", f.name+"/"+image); err != nil {
			return err
		}
		if len(status.Watchers) != 1 {
			return fmt.Errorf("image %s has %d watchers, want 1", image, len(status.Watchers))
		}
		address = status.Watchers[0].Address
		return nil
	})
	return address, unwatch
}

// apply applies a changed manifest of the repository.
func (f *fixture) apply(path string, change func(string) string) {
	f.Helper()
	text, err := os.ReadFile(checkout(path))
	f.must(err)
	_, err = rig.Kube.Kubectl(f.Context(), change(string(text)), "apply", "-f", "-")
	f.must(err)
}
