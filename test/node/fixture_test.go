// SPDX-License-Identifier: Apache-2.0

package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/cluster"
)

// fixture has the objects of one test. Its name is that of its namespace, its pool and
// its class.
type fixture struct {
	*testing.T
	name string
	// userSecretNamespace has the secret of the user that maps images.
	userSecretNamespace string
}

// newFixture makes a namespace, a pool, two Ceph users with minimal caps and their
// secrets, and a class. The user's secret is in the namespace of the claims. When the
// test ends, all this is deleted, and the pool must then be empty.
func newFixture(t *testing.T, change func(*storagev1.StorageClass)) *fixture {
	t.Helper()
	f := &fixture{T: t, name: "node-" + strings.ToLower(rand.Text()[:8])}
	ctx := t.Context()
	f.must(rig.Ceph.CreatePool(ctx, f.name))
	_, err := rig.Kube.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: f.name},
	}, metav1.CreateOptions{})
	f.must(err)
	class := &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: f.name},
		Provisioner: "ceph.com/rbd",
		Parameters: map[string]string{
			"monitors":             "v1:" + rig.Ceph.MonitorV1,
			"pool":                 f.name,
			"adminId":              f.name + "-admin",
			"adminSecretName":      f.name + "-admin",
			"adminSecretNamespace": namespace,
			"userId":               f.name + "-user",
			"userSecretName":       f.name + "-user",
		},
	}
	if change != nil {
		change(class)
	}
	f.user("admin", namespace)
	f.userSecretNamespace = cmp.Or(class.Parameters["userSecretNamespace"], f.name)
	f.user("user", f.userSecretNamespace)
	_, err = rig.Kube.Client.StorageV1().StorageClasses().Create(ctx, class, metav1.CreateOptions{})
	f.must(err)
	t.Cleanup(f.end)
	return f
}

// user makes client.NAME-ROLE, with the least caps that the documentation asks
// for, and its secret.
func (f *fixture) user(role, namespace string) {
	f.Helper()
	id := f.name + "-" + role
	key, err := rig.Ceph.CreateUser(f.Context(), id, "mon", "profile rbd", "osd", "profile rbd pool="+f.name)
	f.must(err)
	_, err = rig.Kube.Client.CoreV1().Secrets(namespace).Create(f.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: id, Labels: map[string]string{"test": f.name}},
		Type:       "kubernetes.io/rbd",
		Data:       map[string][]byte{"key": []byte(key)},
	}, metav1.CreateOptions{})
	f.must(err)
}

// create makes a claim of 1Gi.
func (f *fixture) create(name string, change func(*corev1.PersistentVolumeClaim)) {
	f.Helper()
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: ptr.To(f.name),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("1Gi"),
			}},
		},
	}
	if change != nil {
		change(claim)
	}
	_, err := f.claims().Create(f.Context(), claim, metav1.CreateOptions{})
	f.must(err)
}

// bound waits until a claim is bound. It returns its volume.
func (f *fixture) bound(name string) *corev1.PersistentVolume {
	f.Helper()
	var volume *corev1.PersistentVolume
	f.eventually(func(ctx context.Context) error {
		live, err := f.claims().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if live.Status.Phase != corev1.ClaimBound {
			return fmt.Errorf("claim %s is %s; %s", name, live.Status.Phase, f.events(ctx, name))
		}
		volume, err = rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, live.Spec.VolumeName, metav1.GetOptions{})
		return err
	})
	return volume
}

// claim makes a claim like create and waits for its volume: a Pod that is made before
// that is looked at only some 20 s later.
func (f *fixture) claim(name string, change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolume {
	f.Helper()
	f.create(name, change)
	return f.bound(name)
}

// newPod describes a Pod without volumes that runs a script in a shell.
func (f *fixture) newPod(name, script string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			// Without a name server, none is put before the node's own.
			DNSPolicy:                     corev1.DNSDefault,
			RestartPolicy:                 corev1.RestartPolicyNever,
			AutomountServiceAccountToken:  ptr.To(false),
			TerminationGracePeriodSeconds: ptr.To[int64](1),
			Containers: []corev1.Container{{
				Name:            "main",
				Image:           rig.Node.Image,
				ImagePullPolicy: corev1.PullNever,
				Command:         []string{"sh", "-euc", script},
			}},
		},
	}
}

// newPodWith describes a Pod like newPod with a claim as its volume: in /data, or
// as the device /dev/data.
func (f *fixture) newPodWith(name, claim, script string, mode corev1.PersistentVolumeMode) *corev1.Pod {
	pod := f.newPod(name, script)
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
	}}}
	container := &pod.Spec.Containers[0]
	if mode == corev1.PersistentVolumeBlock {
		container.VolumeDevices = []corev1.VolumeDevice{{Name: "data", DevicePath: "/dev/data"}}
	} else {
		container.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	}
	return pod
}

// start makes a Pod.
func (f *fixture) start(pod *corev1.Pod) {
	f.Helper()
	_, err := f.pods().Create(f.Context(), pod, metav1.CreateOptions{})
	f.must(err)
}

// running waits until a Pod runs.
func (f *fixture) running(name string) {
	f.Helper()
	f.eventually(func(ctx context.Context) error { return f.phase(ctx, name, corev1.PodRunning) })
}

// succeeded waits until a Pod has ended without an error.
func (f *fixture) succeeded(name string) {
	f.Helper()
	f.eventually(func(ctx context.Context) error { return f.phase(ctx, name, corev1.PodSucceeded) })
}

// run makes a Pod with a volume, waits for its end and deletes it. It returns
// what the script wrote; the script must succeed.
func (f *fixture) run(name, claim, script string, mode corev1.PersistentVolumeMode) string {
	f.Helper()
	f.start(f.newPodWith(name, claim, script, mode))
	f.succeeded(name)
	out, err := f.pods().GetLogs(name, &corev1.PodLogOptions{}).DoRaw(f.Context())
	f.must(err)
	f.deletePod(name)
	return string(out)
}

// phase returns nil when a Pod is in the phase. A failed Pod ends the test, because it
// will not get there.
func (f *fixture) phase(ctx context.Context, name string, want corev1.PodPhase) error {
	pod, err := f.pods().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if pod.Status.Phase == corev1.PodFailed {
		out, err := f.pods().GetLogs(name, &corev1.PodLogOptions{}).DoRaw(ctx)
		f.Fatalf("pod %s has failed: %s %v; %s", name, out, err, f.events(ctx, name))
	}
	if pod.Status.Phase != want {
		return fmt.Errorf("pod %s is %s, want %s; %s", name, pod.Status.Phase, want, f.events(ctx, name))
	}
	return nil
}

// deletePod deletes a Pod and waits until it is gone.
func (f *fixture) deletePod(name string) {
	f.Helper()
	f.must(f.pods().Delete(f.Context(), name, metav1.DeleteOptions{}))
	f.eventually(func(ctx context.Context) error {
		_, err := f.pods().Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(err, fmt.Errorf("pod %s is still there; %s", name, f.events(ctx, name)))
	})
}

// exec runs a script in a running Pod, and returns what it wrote.
func (f *fixture) exec(pod, script string) (string, error) {
	return rig.Kube.Kubectl(f.Context(), "", "exec", "-n", f.name, pod, "--", "sh", "-euc", script)
}

// event waits for an event about the object of a name whose message has a text.
func (f *fixture) event(name, text string) {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		if events := f.events(ctx, name); !strings.Contains(events, text) {
			return fmt.Errorf("no event about %s says %q; %s", name, text, events)
		}
		return nil
	})
}

func (f *fixture) pods() clientcorev1.PodInterface { return rig.Kube.Client.CoreV1().Pods(f.name) }

func (f *fixture) claims() clientcorev1.PersistentVolumeClaimInterface {
	return rig.Kube.Client.CoreV1().PersistentVolumeClaims(f.name)
}

// events returns the events about the object with a name as text.
func (f *fixture) events(ctx context.Context, name string) string {
	list, err := rig.Kube.Client.CoreV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
	if err != nil {
		return err.Error()
	}
	texts := []string{"events:"}
	for _, e := range list.Items {
		// Tests use one name for Pods and claims; volumes have no namespace.
		if ns := e.InvolvedObject.Namespace; ns != "" && ns != f.name {
			continue
		}
		texts = append(texts, fmt.Sprintf("  %s %s (%d times): %s", e.Type, e.Reason, e.Count, e.Message))
	}
	return strings.Join(texts, "\n")
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

// end deletes what the test has made; its claims' images must be removed.
func (f *fixture) end() {
	ctx := context.WithoutCancel(f.Context())
	core := rig.Kube.Client.CoreV1()
	err := errors.Join(
		f.pods().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
		f.claims().DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
		cluster.Eventually(ctx, patience, func(ctx context.Context) error { return f.noImages(ctx) }),
	)
	if err != nil {
		f.Errorf("after the test: %v", err)
	}
	// The rig is removed anyway: this only keeps it small.
	err = errors.Join(
		core.Namespaces().Delete(ctx, f.name, metav1.DeleteOptions{}),
		core.Secrets(namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "test=" + f.name}),
		rig.Kube.Client.StorageV1().StorageClasses().Delete(ctx, f.name, metav1.DeleteOptions{}),
		rig.Ceph.DeletePool(ctx, f.name),
	)
	if err != nil {
		f.Errorf("clean up: %v", err)
	}
}

// noImages returns nil when the test has no volume left, and the pool no image, nor its
// trash.
func (f *fixture) noImages(ctx context.Context) error {
	volumes, err := rig.Kube.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, v := range volumes.Items {
		if v.Spec.RBD != nil && v.Spec.RBD.RBDPool == f.name {
			return fmt.Errorf("volume %s is %s; %s", v.Name, v.Status.Phase, f.events(ctx, v.Name))
		}
	}
	return rig.ImagesMatchVolumes(ctx, f.name)
}
