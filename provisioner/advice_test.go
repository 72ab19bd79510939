// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Claims that wait in vain are told why, and no other claims are told anything.
func TestAdvise(t *testing.T) {
	bound := func(c *corev1.PersistentVolumeClaim) {
		c.Annotations["pv.kubernetes.io/bind-completed"] = "yes"
	}
	missing := func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "missing" }
	for _, test := range []struct {
		name   string
		change func(*corev1.PersistentVolumeClaim)
		also   func(*testing.T, *fixture)
		want   string
	}{
		{"a claim that waits for us", func(*corev1.PersistentVolumeClaim) {}, nil, ""},
		{"a volume that does not exist", missing, nil, `Warning VolumeNotFound there is no volume "missing"`},
		{"a volume that is made in time", missing, func(t *testing.T, f *fixture) {
			if err := f.volumes.Add(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "missing"}}); err != nil {
				t.Fatal(err)
			}
		}, ""},
		{"a copied claim", bound, nil, "Warning NotBound the claim has the annotation"},
		{"a copied claim with its volume", func(c *corev1.PersistentVolumeClaim) { bound(c); missing(c) }, nil, "Warning NotBound"},
		{"a bound claim", func(c *corev1.PersistentVolumeClaim) {
			bound(c)
			missing(c) // its volume is not in the cache yet
			c.Status.Phase = corev1.ClaimBound
		}, nil, ""},
		{"a claim of another provisioner", missing, func(t *testing.T, f *fixture) {
			f.putClass(t, func(c *storagev1.StorageClass) { c.Provisioner = "other" })
		}, ""},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			var claim *corev1.PersistentVolumeClaim
			f.putLive(t, func(c *corev1.PersistentVolumeClaim) {
				if c.Annotations == nil {
					c.Annotations = map[string]string{}
				}
				c.Spec.StorageClassName = &f.options.StorageClass.Name
				test.change(c)
				claim = c
			})
			if test.also != nil {
				test.also(t, f)
			}
			f.Advise(t.Context(), claim)
			sent := f.sent(t)
			if test.want == "" {
				checkSame(t, "the events", nil, sent)
			} else if len(sent) != 1 || !strings.HasPrefix(sent[0], test.want) {
				t.Errorf("the events are %q, want one that begins with %q", sent, test.want)
			}
		})
	}
}
