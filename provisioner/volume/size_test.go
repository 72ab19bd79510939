// SPDX-License-Identifier: Apache-2.0

package volume_test

import (
	"math"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

const mib = 1 << 20

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
			got, err := volume.ImageSize(resources)
			if got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
			if (err == nil) != (test.wantErr == "") || err != nil && !strings.Contains(err.Error(), test.wantErr) {
				t.Errorf("got %v, want %q", err, test.wantErr)
			}
		})
	}
}

// FuzzImageSize tries all quantities that the API server could accept, with or without a
// limit.
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
		size, err := volume.ImageSize(resources)
		if err != nil {
			if size != 0 || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s, at most %s: got %d, %v", text, limitText, size, err)
			}
			// Only impossible sizes may be refused.
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
