// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2/ktesting"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/lease"
	"ceph.com/rbd-provisioner/provisioner/ownership"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/resize"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// Without growing, its right is not asked for.
func TestExpansionSwitchedOff(t *testing.T) {
	asked := func(args ...string) bool {
		return slices.ContainsFunc(parse(t, nil, args...).permissions("default"), func(p permission) bool {
			return p.resource == expansionPermission.resource
		})
	}
	if !asked() || asked("-expansion=false") {
		t.Errorf("asked: %v by default, %v with -expansion=false", asked(), asked("-expansion=false"))
	}
}

// The loop waits for its right, however long that is missing, and asks for the
// subresource as such.
func TestExpansionWaitsForItsRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		begin := time.Now()
		const granted = 10 * time.Minute
		client.PrependReactor("create", "selfsubjectaccessreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
			review := action.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview)
			of := review.Spec.ResourceAttributes
			review.Status.Allowed = time.Since(begin) >= granted &&
				of.Resource == "persistentvolumeclaims" && of.Subresource == "status" && of.Verb == "patch"
			return true, review, nil
		})
		if err := waitForExpansion(t.Context(), client.AuthorizationV1().SelfSubjectAccessReviews()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < granted || took > granted+2*permissionRetry {
			t.Errorf("it waited %s for a right that came after %s", took, granted)
		}
	})
}

// TestTrimmedClaimGrows has volumes grow whose claims are cached as the program caches them:
// one whose claim asks for more later, and a clone whose file system is smaller than it.
func TestTrimmedClaimGrows(t *testing.T) {
	const monitor = "10.0.0.1:6789"
	_, ctx := ktesting.NewTestContext(t)
	ctx, cancel := context.WithCancel(ctx)
	ceph := rbdtest.NewCluster(monitor)
	ceph.AddPool("kube")
	admin := ceph.AddUser("admin", rbdtest.Caps{AllPools: true})
	claim, pv := fullClaim("a", "a"), fullVolume("a")
	clone, larger := fullClaim("clone", "clone"), fullVolume("clone")
	larger.Annotations[volume.AnnFileSystemSize] = "500Mi"
	connection, err := ceph.Connect(ctx, admin)
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	pool, err := connection.OpenPool(ctx, "kube")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, pv := range []*corev1.PersistentVolume{pv, larger} {
		if err := pool.CreateImage(ctx, pv.Name, rbd.ImageSpec{SizeBytes: 1 << 30}); err != nil {
			t.Fatal(err)
		}
		pv.Spec.ClaimRef.UID = types.UID("uid-of-" + pv.Name)
		volume.Record{Monitors: []string{monitor}, Pool: "kube", Image: pv.Name,
			Admin: "admin", AdminSecret: volume.SecretRef{Namespace: "kube-system", Name: "admin"}}.Write(pv)
	}
	client := fake.NewClientset(claim, pv, clone, larger, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "admin"},
		Data:       map[string][]byte{access.KeyEntry: []byte(admin.Key.Reveal())},
	})
	open, err := access.New(access.Config{Secrets: client.CoreV1(), Connector: rbdtest.NewConnector(ceph)})
	if err != nil {
		t.Fatal(err)
	}
	factory := newInformers(client)
	loop, err := resize.New(resize.Config{
		Keeper: ownership.Keeper{Identity: "ceph.com/rbd"},
		Volumes: access.Volumes{
			Access: open, Classes: factory.Storage().V1().StorageClasses().Lister(), Provisioner: "ceph.com/rbd",
		},
		Client: client, Factory: factory, ResyncPeriod: time.Hour, Workers: 1,
		BackoffStart: time.Millisecond, BackoffCap: time.Second, Lease: lease.New(nil), Resized: func(error) {},
		Sized: func(runtime.Object, int64) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	factory.StartWithContext(ctx)
	defer factory.Shutdown()
	defer cancel()
	if err := factory.WaitForCacheSyncWithContext(ctx).AsError(); err != nil {
		t.Fatal(err)
	}
	go loop.Run(ctx)

	claims := client.CoreV1().PersistentVolumeClaims("default")
	if _, err := claims.Patch(ctx, "a", types.MergePatchType,
		[]byte(`{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, capacity := range map[string]string{"a": "1Gi", "clone": "500Mi"} {
		until(ctx, t, name+" waits for its file system", func(ctx context.Context) (bool, error) {
			live, err := claims.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			if live.Labels["team"] != "blue" || len(live.Annotations) != 3 || len(live.Finalizers) != 1 {
				return false, fmt.Errorf("the claim lost something: %+v", live.ObjectMeta)
			}
			pending := slices.ContainsFunc(live.Status.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
				return c.Type == corev1.PersistentVolumeClaimFileSystemResizePending
			})
			return pending && live.Status.Capacity.Storage().String() == capacity, nil
		})
	}
	live, err := client.CoreV1().PersistentVolumes().Get(ctx, "a", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if live.Spec.Capacity.Storage().String() != "2Gi" || live.Labels["team"] != "blue" {
		t.Errorf("the volume that was grown is %+v", live)
	}
}
