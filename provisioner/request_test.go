// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner"
	"ceph.com/rbd-provisioner/provisioner/access"
)

func storage(quantity string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(quantity)}
}

func options() controller.ProvisionOptions {
	return controller.ProvisionOptions{
		PVName: "pvc-1234",
		PVC: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "apps", Name: "data", UID: "1234"},
			Spec: corev1.PersistentVolumeClaimSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources:   corev1.VolumeResourceRequirements{Requests: storage("1Gi")},
			},
		},
		StorageClass: &storagev1.StorageClass{
			ObjectMeta:  metav1.ObjectMeta{Name: "fast"},
			Provisioner: provisioner.DefaultName,
			Parameters: map[string]string{
				"monitors": "10.0.0.1:6789", "adminSecretName": "admin", "adminSecretNamespace": "kube-system",
				"userSecretName": "user", "userId": "kube", "fsType": "xfs",
			},
		},
	}
}

// TestUserSecretNamespace: if the class names no namespace, the user's secret is in the
// claim's. It is checked, so that a mistake shows on the claim.
func TestUserSecretNamespace(t *testing.T) { synctest.Test(t, testUserSecretNamespace) }

func testUserSecretNamespace(t *testing.T) {
	for namespace, want := range map[string]string{"": `"apps/user"`, "ceph": `"ceph/user"`} {
		f := newFixture(t)
		f.dropSecret(t, "apps", "user")
		if namespace != "" {
			f.putParameter(t, "userSecretNamespace", namespace)
		}
		_, _, err := f.provision(t.Context(), t)
		if !errors.Is(err, access.ErrSecretNotFound) || !strings.Contains(err.Error(), "user's secret "+want) {
			t.Errorf("namespace %q: got %v, want that %s is not there", namespace, err, want)
		}
	}
}

func TestRefused(t *testing.T) {
	const (
		selector = "the claim has a selector, which volumes made on demand can't match: remove spec.selector, " +
			"or name an existing volume in spec.volumeName"
		source = "the claim asks for the content of \"nightly\" of kind \"VolumeSnapshot.snapshot.storage.k8s.io\" (spec.dataSource or " +
			"spec.dataSourceRef), which this provisioner can't give: name a PersistentVolumeClaim of the same namespace, " +
			"or make a claim without it"
		modes = "access mode ReadWriteMany, ReadWriteOncePod is not supported: supported are ReadWriteOnce and ReadOnlyMany; " +
			`ReadWriteOncePod needs the node plugin and a StorageClass that gives "volumeSource" as csi`
		size  = "the claim requests no storage: set spec.resources.requests.storage"
		class = `parameter "monitors" is missing: list the Ceph monitors, as in 10.0.0.1:6789,10.0.0.2:6789`
	)
	addSelector := func(o controller.ProvisionOptions) { o.PVC.Spec.Selector = &metav1.LabelSelector{} }
	addModes := func(o controller.ProvisionOptions) {
		o.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{
			corev1.ReadWriteMany, corev1.ReadOnlyMany, corev1.ReadWriteOncePod,
		}
	}
	for _, test := range []struct {
		name   string
		change func(controller.ProvisionOptions)
		want   string
	}{
		{"a selector", addSelector, selector},
		{"a data source", func(o controller.ProvisionOptions) {
			o.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "nightly"}
		}, source},
		{"a reference to one", func(o controller.ProvisionOptions) {
			o.PVC.Spec.DataSourceRef = &corev1.TypedObjectReference{APIGroup: ptr.To("snapshot.storage.k8s.io"), Kind: "VolumeSnapshot", Name: "nightly"}
		}, source},
		{"a claim without a name", func(o controller.ProvisionOptions) {
			o.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim"}
		}, strings.NewReplacer("nightly", "", "VolumeSnapshot.snapshot.storage.k8s.io", "PersistentVolumeClaim").Replace(source)},
		{"a VolumeAttributesClass", func(o controller.ProvisionOptions) { o.PVC.Spec.VolumeAttributesClassName = ptr.To("gold") },
			`the claim asks for the VolumeAttributesClass "gold", but rbd volumes have no such attributes: ` +
				"make the claim anew without spec.volumeAttributesClassName"},
		{"access modes", addModes, modes},
		{"everything at once, in one line", func(o controller.ProvisionOptions) {
			addSelector(o)
			addModes(o)
			o.PVC.Spec.Resources.Requests = nil
		}, size + "; " + selector + "; " + modes},
		{"the class comes first", func(o controller.ProvisionOptions) {
			addSelector(o)
			delete(o.StorageClass.Parameters, "monitors")
		}, class},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			test.change(f.options)
			_, state, err := f.provision(t.Context(), t)
			if err == nil {
				t.Fatal("it made a volume")
			}
			checkSame(t, "the error", test.want, err.Error())
			checkSame(t, "the state", controller.ProvisioningNoChange, state)
			checkSame(t, "the number of connections", 0, f.connector.connects.Load())
			f.checkNothing(t)
		})
	}
}
