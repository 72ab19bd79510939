// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/test/cluster"
)

// imagePrefix and a claim's UID are its image's name.
const imagePrefix = "kubernetes-dynamic-pvc-"

// fixture is one provisioner with a namespace, a pool and two classes, "NAME" and
// "NAME-retain". NAME is also that of the namespace, the pool and the Ceph user.
type fixture struct {
	*testing.T
	name string
	ceph *cluster.Ceph
	kube *cluster.Kubernetes
	rig  *cluster.Cluster // of kube
	p    *cluster.Provisioner
	// kept are the things that must be there, unchanged, when the test ends.
	kept []survivor
	// neighbour is a second Kubernetes cluster with volumes in the pool.
	neighbour *fixture
	// cloning says that clones were made, so that there is more to check at the end.
	cloning bool
}

// shortLease is for tests that wait until the lease ends: one that is not given back is
// free after 3 s.
var shortLease = []string{
	"-leader-election-lease-duration=3s", "-leader-election-renew-deadline=2s", "-leader-election-retry-period=300ms",
}

// longLease outlasts a restart of the API server.
var longLease = []string{
	"-leader-election-lease-duration=120s", "-leader-election-renew-deadline=100s", "-leader-election-retry-period=300ms",
}

// newFixture starts a provisioner on a rig for this test alone, with additional flags,
// and makes the survivors. When the test ends, all must be settled, and the survivors
// untouched.
func newFixture(t *testing.T, flags ...string) *fixture {
	t.Helper()
	rig := takeRig(t)
	f := &fixture{
		T: t, name: "faults-" + strings.ToLower(rand.Text()[:8]),
		rig: rig, ceph: rig.Ceph, kube: rig.Kube,
	}
	f.must(f.ceph.CreatePool(t.Context(), f.name))
	key, err := f.ceph.CreateUser(t.Context(), f.name, "mon", "profile rbd", "osd", "profile rbd pool="+f.name)
	f.must(err)
	f.join(key, flags...)
	f.makeSurvivors()
	t.Cleanup(f.end)
	return f
}

// join makes the objects in Kubernetes, and starts the provisioner.
func (f *fixture) join(key string, flags ...string) {
	f.Helper()
	ctx := f.Context()
	_, err := f.kube.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: f.name},
	}, metav1.CreateOptions{})
	f.must(err)
	for ns, name := range map[string]string{namespace: f.name, f.name: "user"} {
		_, err := f.kube.Client.CoreV1().Secrets(ns).Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
			Type:       "kubernetes.io/rbd",
			Data:       map[string][]byte{"key": []byte(key)},
		}, metav1.CreateOptions{})
		f.must(err)
	}
	f.class(f.name, "ceph.com/rbd", corev1.PersistentVolumeReclaimDelete)
	f.class(f.name+"-retain", "ceph.com/rbd", corev1.PersistentVolumeReclaimRetain)
	f.p = f.start(nil, flags...)
}

func (f *fixture) class(name, provisioner string, policy corev1.PersistentVolumeReclaimPolicy, changes ...func(*storagev1.StorageClass)) {
	f.Helper()
	class := &storagev1.StorageClass{
		ObjectMeta:    metav1.ObjectMeta{Name: name},
		Provisioner:   provisioner,
		ReclaimPolicy: &policy,
		Parameters: map[string]string{
			"monitors": f.ceph.MonitorV1, "pool": f.name,
			"adminId": f.name, "adminSecretName": f.name, "adminSecretNamespace": namespace,
			"userId": f.name, "userSecretName": "user",
		},
	}
	for _, change := range changes {
		change(class)
	}
	_, err := f.kube.Client.StorageV1().StorageClasses().Create(f.Context(), class, metav1.CreateOptions{})
	f.must(err)
}

// start starts a provisioner with the account of rbac/.
func (f *fixture) start(env []string, flags ...string) *cluster.Provisioner {
	f.Helper()
	p, err := f.rig.StartProvisioner(f.Context(), cluster.ProvisionerConfig{
		Binary: program,
		// Short, as tests wait until it has passed.
		Args:      append([]string{"-v=5", "-command-timeout=3"}, flags...),
		Env:       env,
		Namespace: namespace, ServiceAccount: account,
	})
	f.must(err)
	return p
}

// request makes a claim of 16Mi, changed. An existing claim of the name counts as
// success: an answer may have been lost.
func (f *fixture) request(ctx context.Context, class, name string, changes ...func(*corev1.PersistentVolumeClaim)) (*corev1.PersistentVolumeClaim, error) {
	wanted := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: f.name, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: ptr.To(class),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("16Mi"),
			}},
		},
	}
	for _, change := range changes {
		change(wanted)
	}
	client := f.kube.Client.CoreV1().PersistentVolumeClaims(wanted.Namespace)
	claim, err := client.Create(ctx, wanted, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return client.Get(ctx, name, metav1.GetOptions{})
	}
	return claim, err
}

// claim makes a claim of the class NAME.
func (f *fixture) claim(name string) *corev1.PersistentVolumeClaim {
	f.Helper()
	return f.claims(name, 1)[0]
}

// claims makes claims PREFIX-0, PREFIX-1 … of the class NAME, several at a time, and
// keeps trying while the API server is away.
func (f *fixture) claims(prefix string, count int) []*corev1.PersistentVolumeClaim {
	f.Helper()
	claims := make([]*corev1.PersistentVolumeClaim, count)
	f.together(count, func(ctx context.Context, i int) (err error) {
		claims[i], err = f.request(ctx, f.name, fmt.Sprintf("%s-%d", prefix, i))
		return err
	})
	return claims
}

// delete deletes claims in the same way, without waiting until they are gone.
func (f *fixture) delete(claims ...*corev1.PersistentVolumeClaim) {
	f.Helper()
	f.together(len(claims), func(ctx context.Context, i int) error {
		err := f.kube.Client.CoreV1().PersistentVolumeClaims(f.namespaceOf(claims[i])).Delete(ctx, claims[i].Name, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
}

// namespaceOf returns the namespace of a claim, which is NAME by default.
func (f *fixture) namespaceOf(claim *corev1.PersistentVolumeClaim) string {
	return cmp.Or(claim.Namespace, f.name)
}

// together calls do for 0 … count-1, eight at a time, each until do returns nil.
func (f *fixture) together(count int, do func(ctx context.Context, i int) error) {
	f.Helper()
	errs := make([]error, count)
	var wg sync.WaitGroup
	turn := make(chan struct{}, 8)
	for i := range count {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			errs[i] = cluster.Eventually(f.ctx(), patience, func(ctx context.Context) error {
				// A server that is halted accepts requests and does not answer.
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				defer cancel()
				return do(ctx, i)
			})
		})
	}
	wg.Wait()
	f.must(errors.Join(errs...))
}
