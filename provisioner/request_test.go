// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

func storage(quantity string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(quantity)}
}

func TestImageSize(t *testing.T) {
	for _, test := range []struct {
		name           string
		request, limit string
		want           int64
		wantErr        string
	}{
		{"a whole MiB", "1Gi", "", 1 << 30, ""},
		{"one byte", "1", "", 1 << 20, ""},
		{"a byte more than a MiB", "1048577", "", 2 << 20, ""},
		{"decimal units", "1G", "", 954 << 20, ""},
		{"a fraction of a byte", "1500m", "", 1 << 20, ""},
		{"as large as can be", "8191Pi", "", 8191 << 50, ""},
		{"a limit that leaves room", "1G", "1Gi", 954 << 20, ""},
		{"none", "0", "", 0, "requests no storage"},
		{"below none", "-1Gi", "", 0, "requests no storage"},
		{"larger than an int64", "8Ei", "", 0, "more storage than an image can have"},
		{"far larger", "1e30", "", 0, "more storage than an image can have"},
		{"rounding goes over the limit", "1G", "1G", 0, "the claim's limit 1G is below its request rounded up to a MiB, 954Mi"},
	} {
		t.Run(test.name, func(t *testing.T) {
			resources := corev1.VolumeResourceRequirements{Requests: storage(test.request)}
			if test.limit != "" {
				resources.Limits = storage(test.limit)
			}
			got, err := imageSize(resources)
			if got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
			if (err == nil) != (test.wantErr == "") || err != nil && !strings.Contains(err.Error(), test.wantErr) {
				t.Errorf("got %v, want %q", err, test.wantErr)
			}
		})
	}
}

// Any quantities that the API server could let through, with or without a limit.
func FuzzImageSize(f *testing.F) {
	for _, seed := range []string{
		"1Gi", "0", "-5", "1e30", "9223372036854775807", "9223372036854775806n", "8Ei", "1n", "-1n", "0.5", "1048576.000000001",
		"9223372036853727231", "9223372036853727232", "9223372036853727231.5", "-9223372036854775808", "1e-30", "7.999Ei", "+1Gi", ".5Ki",
	} {
		f.Add(seed, "")
		f.Add("1Gi", seed)
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, text, limitText string) {
		quantity, err := resource.ParseQuantity(text)
		if err != nil {
			return
		}
		resources := corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: quantity}}
		limit, err := resource.ParseQuantity(limitText)
		if limited := err == nil; limited {
			resources.Limits = corev1.ResourceList{corev1.ResourceStorage: limit}
		} else {
			limit = *resource.NewQuantity(math.MaxInt64, resource.BinarySI)
		}
		size, err := imageSize(resources)
		if err != nil {
			if size != 0 || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s, at most %s: got %d, %v", text, limitText, size, err)
			}
			// Only what can't be is refused.
			if quantity.Sign() > 0 && quantity.CmpInt64(1<<62) <= 0 && limit.CmpInt64(1<<62+mib) >= 0 {
				t.Errorf("%s, at most %s: %v", text, limitText, err)
			}
			return
		}
		if size <= 0 || size%mib != 0 || quantity.CmpInt64(size) > 0 || quantity.CmpInt64(size-mib) <= 0 {
			t.Errorf("%s became %d", text, size)
		}
		if limit.CmpInt64(size) < 0 {
			t.Errorf("%s became %d, more than %s", text, size, limitText)
		}
	})
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
		source = "the claim asks for a volume with content (spec.dataSource or spec.dataSourceRef), " +
			"which this provisioner can't give: make a claim without it"
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
			o.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{}
		}, source},
		{"a reference to one", func(o controller.ProvisionOptions) {
			o.PVC.Spec.DataSourceRef = &corev1.TypedObjectReference{}
		}, source},
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
