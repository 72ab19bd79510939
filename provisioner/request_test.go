// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/volume"
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
			Provisioner: DefaultName,
			Parameters: map[string]string{
				"monitors": "10.0.0.1:6789", "adminSecretName": "admin", "adminSecretNamespace": "kube-system",
				"userSecretName": "user", "userId": "kube", "fsType": "xfs",
			},
		},
	}
}

func TestNewRequest(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	for _, test := range []struct {
		name      string
		usePVName bool
		change    func(controller.ProvisionOptions)
		check     func(*testing.T, request)
	}{
		{"the image's name comes from the claim's UID", false, func(controller.ProvisionOptions) {}, func(t *testing.T, r request) {
			if r.image != "kubernetes-dynamic-pvc-1234" || r.pvName != "pvc-1234" {
				t.Errorf("got image %q of volume %q", r.image, r.pvName)
			}
		}},
		{"or from the volume's name", true, func(controller.ProvisionOptions) {}, func(t *testing.T, r request) {
			if r.image != "pvc-1234" {
				t.Errorf("got image %q", r.image)
			}
		}},
		{"the user's secret is beside the claim where the class does not say", false, func(controller.ProvisionOptions) {}, func(t *testing.T, r request) {
			if want := (volume.SecretRef{Namespace: "apps", Name: "user"}); r.userSecret != want {
				t.Errorf("got %v, want %v", r.userSecret, want)
			}
		}},
		{"or where the class says", false, func(o controller.ProvisionOptions) { o.StorageClass.Parameters["userSecretNamespace"] = "ceph" }, func(t *testing.T, r request) {
			if want := (volume.SecretRef{Namespace: "ceph", Name: "user"}); r.userSecret != want {
				t.Errorf("got %v, want %v", r.userSecret, want)
			}
		}},
		{"a file system", false, func(controller.ProvisionOptions) {}, func(t *testing.T, r request) {
			if r.fsType != "xfs" {
				t.Errorf("got %q", r.fsType)
			}
		}},
		{"a block volume has none", false, func(o controller.ProvisionOptions) { o.PVC.Spec.VolumeMode = &block }, func(t *testing.T, r request) {
			if r.fsType != "" {
				t.Errorf("got %q", r.fsType)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := options()
			test.change(o)
			r, err := (&Provisioner{config: Config{UsePVName: test.usePVName}}).newRequest(o)
			if err != nil {
				t.Fatal(err)
			}
			test.check(t, r)
		})
	}
}

func TestNewRequestRefuses(t *testing.T) {
	const (
		selector = "the claim has a selector, which volumes made on demand can't match: remove spec.selector, " +
			"or name an existing volume in spec.volumeName"
		source = "the claim asks for the content of \"nightly\" of kind \"VolumeSnapshot.snapshot.storage.k8s.io\" (spec.dataSource or " +
			"spec.dataSourceRef), which this provisioner can't give: name a PersistentVolumeClaim of the same namespace, " +
			"or make a claim without it"
		modes = "access mode ReadWriteMany, ReadWriteOncePod is not supported: supported are ReadWriteOnce and ReadOnlyMany"
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
		t.Run(test.name, func(t *testing.T) {
			o := options()
			test.change(o)
			r, err := (&Provisioner{}).newRequest(o)
			if err == nil {
				t.Fatalf("got %+v, want an error", r)
			}
			if diff := cmp.Diff(test.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}
