// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/storageclass"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// hostile are values that an attacker may write into a claim, hoping to reach another
// pool, image, user, key or cluster.
func hostile() map[string]string {
	m := map[string]string{
		volume.AnnIdentity:                              "someone-else",
		volume.AnnDeletionSecretName:                    "theirs",
		volume.AnnDeletionSecretNamespace:               "kube-system",
		volume.AnnDeletionUser:                          "client.admin",
		volume.AnnClusterFSID:                           "00000000-0000-0000-0000-000000000000",
		corev1.BetaStorageClassAnnotation:               "other",
		"volume.beta.kubernetes.io/storage-provisioner": "example.com/other",
		"volume.kubernetes.io/storage-provisioner":      "example.com/other",
		"volume.kubernetes.io/selected-node":            "rbd/their-image",
		"volume.alpha.kubernetes.io/selected-node":      "../their-image",
		"pv.kubernetes.io/provisioned-by":               "example.com/other",
		"pv.kubernetes.io/bound-by-controller":          "yes",
		"kubernetes.io/createdby":                       "rbd-dynamic-provisioner",
		volume.MetaVolume:                               "pvc-theirs",
		"image":                                         "their-image",
		"rbd.ceph.com/image":                            "their-image",
	}
	for _, key := range storageclass.Keys() {
		m[key], m["rbd.ceph.com/"+key], m["ceph.com/rbd."+key] = "10.0.1.1:6789", "their-"+strings.ToLower(key), "theirs"
	}
	return m
}

// Annotations, labels and other fields of a claim do not change where its image is, what
// its name is, or who makes, uses and deletes it.
func TestClaimsReachNothingOfOthers(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*corev1.PersistentVolumeClaim)
	}{
		{"annotations", func(c *corev1.PersistentVolumeClaim) { c.Annotations = hostile() }},
		{"labels", func(c *corev1.PersistentVolumeClaim) { c.Labels = hostile() }},
		{"finalizers and a generated name", func(c *corev1.PersistentVolumeClaim) {
			c.Finalizers, c.GenerateName = []string{"example.com/their-image"}, "their-image-"
		}},
		{"an owner that is another's claim", func(c *corev1.PersistentVolumeClaim) {
			c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "PersistentVolumeClaim", Name: "theirs", UID: "5678"}}
		}},
		{"a status that it has not", func(c *corev1.PersistentVolumeClaim) {
			c.Status.Phase, c.Status.Capacity = corev1.ClaimBound, storage("9Ti")
		}},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			f.seed(t, f.ceph, "their-image", rbd.ImageSpec{SizeBytes: 1 << 20}, map[string]string{volume.MetaVolume: "pvc-theirs"})
			theirs, _ := f.ceph.Image(testPool, "their-image")
			test.change(f.options.PVC)
			f.putLive(t, func(*corev1.PersistentVolumeClaim) {})

			checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
			checkSame(t, "the images", []string{testImage, "their-image"}, f.ceph.Images(testPool))
			mine, _ := f.ceph.Image(testPool, testImage)
			checkSame(t, "the image's metadata", testMarks(), mine.Metadata)
			after, _ := f.ceph.Image(testPool, "their-image")
			checkSame(t, "another's image", theirs, after)
			checkSame(t, "images of another cluster", nil, f.other.Images(testPool))
		})
	}
}

// A source that is not a claim of the same namespace is refused before anything is read
// or called.
func TestContentOfOthersIsRefused(t *testing.T) {
	const kinds, namespaces = `asks for the content of "theirs" of kind `, "asks for the content of a claim in namespace "
	for _, test := range []struct {
		kind      string
		group     string
		namespace *string
		want      string
	}{
		{"PersistentVolumeClaim", "", ptr.To("kube-system"), namespaces},
		{"PersistentVolumeClaim", "", ptr.To("../kube-system"), namespaces},
		{"PersistentVolumeClaim", "example.com", nil, kinds + `"PersistentVolumeClaim.example.com"`},
		{"VolumeSnapshot", "snapshot.storage.k8s.io", nil, kinds + `"VolumeSnapshot.snapshot.storage.k8s.io"`},
		{"VolumeSnapshot", "snapshot.storage.k8s.io", ptr.To("kube-system"), kinds + `"VolumeSnapshot.snapshot.storage.k8s.io"`},
		{"Secret", "", nil, kinds + `"Secret"`},
		{"Secret", "", ptr.To(""), kinds + `"Secret"`},
		{"persistentvolumeclaim", "", nil, kinds + `"persistentvolumeclaim"`},
		{"", "", nil, kinds + `""`},
	} {
		inBubble(t, test.kind+"."+test.group, func(t *testing.T) {
			f := newFixture(t)
			f.options.PVC.Spec.DataSourceRef = &corev1.TypedObjectReference{
				APIGroup: &test.group, Kind: test.kind, Name: "theirs", Namespace: test.namespace,
			}
			f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
			if _, _, err := f.provision(t.Context(), t); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want a refusal", err)
			}
			f.checkNothing(t)
			checkSame(t, "the number of connections", 0, f.connector.connects.Load())
		})
	}
}

// imageNames matches all possible names of images: Kubernetes makes the claim's UID,
// which only the API server sets.
var imageNames = regexp.MustCompile(`^kubernetes-dynamic-pvc-[0-9a-f-]+$`)

// Whatever the name, annotations and labels of a claim, the calls to Ceph are the same.
func FuzzClaim(f *testing.F) {
	for key, value := range hostile() {
		f.Add("data", key, value, key, value)
	}
	f.Add("rbd/theirs", "pool", "rbd\x00", "\n", "@snap")
	f.Add("kubernetes-dynamic-pvc-5678", "", "", "", "")
	f.Fuzz(func(t *testing.T, name, annotation, value, label, labelValue string) {
		plain, odd := newFixture(t), newFixture(t)
		odd.dropLive(t)
		o := odd.options
		o.PVC.Name = name
		o.PVC.Annotations, o.PVC.Labels = map[string]string{annotation: value}, map[string]string{label: labelValue}
		odd.putLive(t, func(*corev1.PersistentVolumeClaim) {})
		want, got := plain.mustProvision(t), odd.mustProvision(t)
		want.Annotations[volume.AnnClusterFSID] = got.Annotations[volume.AnnClusterFSID] // each has its own
		checkSame(t, "the volume", want, got)
		checkSame(t, "the images", plain.ceph.Images(testPool), odd.ceph.Images(testPool))
		if !imageNames.MatchString(got.Spec.RBD.RBDImage) {
			t.Errorf("the image is called %q", got.Spec.RBD.RBDImage)
		}
	})
}
