// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/image"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// marksWith returns testMarks with some entries replaced; an empty value removes one.
func marksWith(entries map[string]string) map[string]string {
	marks := testMarks()
	maps.Copy(marks, entries)
	maps.DeleteFunc(marks, func(_, value string) bool { return value == "" })
	return marks
}

// TestConflict: an image has the name of the claim's image, but is not that. Any change
// to it would cost its owner data.
func TestConflict(t *testing.T) {
	const watcher = "10.0.2.1:0/77"
	watch := func(_ *testing.T, f *fixture) { f.ceph.Watch(testPool, testImage, watcher) }
	snapshot := func(_ *testing.T, f *fixture) { f.ceph.AddSnapshot(testPool, testImage, "backup") }
	nothing := func(*testing.T, *fixture) {}
	wantData := func(t *testing.T, f *fixture) { f.putParameter(t, "dataPool", "data") }
	marked := func(key, value string) map[string]string { return marksWith(map[string]string{key: value}) }
	plain := rbd.ImageSpec{SizeBytes: 1 << 30}
	for _, test := range []struct {
		name     string
		spec     rbd.ImageSpec
		metadata map[string]string
		change   func(*testing.T, *fixture)
		want     string
	}{
		{"that of another volume", plain, marked(volume.MetaVolume, "pvc-other"), nothing, `its metadata kubernetes.io/created-for/pv/name is "pvc-other"`},
		{"that of another volume, and nothing else is known", plain, map[string]string{volume.MetaVolume: "pvc-other"}, nothing,
			`its metadata kubernetes.io/created-for/pv/name is "pvc-other"`},
		{"that of a volume whose name begins like ours", plain, marked(volume.MetaVolume, "pvc-12345"), nothing, `"pvc-12345"`},
		{"another provisioner's", plain, marked(volume.MetaIdentity, "elsewhere"), nothing, `its metadata rbdProvisionerIdentity is "elsewhere"`},
		{"another provisioner's, and nothing else is known", plain, map[string]string{volume.MetaIdentity: "elsewhere"}, nothing,
			`its metadata rbdProvisionerIdentity is "elsewhere"`},
		{"another provisioner's that is in use", plain, map[string]string{volume.MetaIdentity: "elsewhere"}, watch, "its metadata"},
		{"a smaller one", rbd.ImageSpec{SizeBytes: 1<<30 - 1}, testMarks(), nothing, "its size differs"},
		{"a larger one", rbd.ImageSpec{SizeBytes: 2 << 30}, testMarks(), nothing, "its size differs"},
		{"a larger one without marks", rbd.ImageSpec{SizeBytes: 2 << 30}, nil, nothing, "its size differs"},
		{"one with more features", plain, nil, func(_ *testing.T, f *fixture) {
			f.ceph.FakeImages(func(i *rbd.Image) { i.Features = []string{"exclusive-lock", rbd.FeatureLayering} })
		}, "its features differ"},
		{"one without features", plain, nil, func(_ *testing.T, f *fixture) {
			f.ceph.FakeImages(func(i *rbd.Image) { i.Features = nil })
		}, "its features differ"},
		{"one with a data pool that the class does not name", rbd.ImageSpec{SizeBytes: 1 << 30, DataPool: "data"}, nil, nothing,
			"its data pool differs"},
		{"one without the data pool that the class names", plain, nil, wantData, "its data pool differs"},
		{"one with another data pool", rbd.ImageSpec{SizeBytes: 1 << 30, DataPool: "other"}, nil, wantData, "its data pool differs"},
		{"one without marks that is in use", plain, nil, watch, "its metadata does not name this claim's volume, and a client has it open: if that does not end, rename or remove it"},
		{"one without marks that has a snapshot", plain, nil, snapshot, "its metadata does not name this claim's volume, and it has snapshots"},
		{"one that names our provisioner alone and is in use", plain, map[string]string{volume.MetaIdentity: testIdentity}, watch,
			"its metadata does not name this claim's volume, and a client has it open: if that does not end, rename or remove it"},
		{"one that names the claim alone and has a snapshot", plain, map[string]string{volume.MetaClaim: "data"}, snapshot,
			"its metadata does not name this claim's volume, and it has snapshots"},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			f.ceph.AddErasurePool("data", true)
			f.ceph.AddErasurePool("other", true)
			f.seed(t, f.ceph, testImage, test.spec, test.metadata)
			test.change(t, f)
			before, _ := f.ceph.Image(testPool, testImage)

			var texts []string
			for range 2 {
				_, state, err := f.provision(t.Context(), t)
				if !errors.Is(err, image.ErrConflict) || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("got the error %v, want %v with %q", err, image.ErrConflict, test.want)
				}
				checkSame(t, "the state", controller.ProvisioningNoChange, state)
				texts = append(texts, err.Error())
			}
			checkSame(t, "the second text", texts[0], texts[1])
			after, _ := f.ceph.Image(testPool, testImage)
			checkSame(t, "the image", before, after)
			checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
		})
	}
}

// TestAdopt: an earlier attempt, or the retired provisioner, made the image for the
// claim.
func TestAdopt(t *testing.T) {
	nothing := func(*fixture) {}
	for _, test := range []struct {
		name           string
		metadata, want map[string]string
		change         func(*fixture)
	}{
		{"without marks", nil, testMarks(), nothing},
		{"with one mark, the volume's", map[string]string{volume.MetaVolume: "pvc-1234"}, testMarks(), nothing},
		{"with one mark, the provisioner's", map[string]string{volume.MetaIdentity: testIdentity}, testMarks(), nothing},
		{"with one mark, the claim's", map[string]string{volume.MetaClaim: "data"}, testMarks(), nothing},
		{"with all but one", marksWith(map[string]string{volume.MetaIdentity: ""}), testMarks(), nothing},
		{"with an empty one", map[string]string{volume.MetaVolume: "", volume.MetaIdentity: ""}, testMarks(), nothing},
		{"with all", testMarks(), testMarks(), nothing},
		{"with a claim's name that is not right, which is for people only", marksWith(map[string]string{volume.MetaClaim: "old"}), testMarks(), nothing},
		{"with metadata of others, which stays", marksWith(map[string]string{"backup": "nightly"}),
			marksWith(map[string]string{"backup": "nightly"}), nothing},
		{"with all marks, in use", testMarks(), testMarks(), func(f *fixture) { f.ceph.Watch(testPool, testImage, "10.0.2.1:0/77") }},
		{"with all marks and a snapshot", testMarks(), testMarks(), func(f *fixture) { f.ceph.AddSnapshot(testPool, testImage, "backup") }},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, test.metadata)
			test.change(f)
			want, _ := f.ceph.Image(testPool, testImage)
			want.Metadata = test.want

			checkSame(t, "the volume", f.wantVolume(), f.mustProvision(t))
			got, _ := f.ceph.Image(testPool, testImage)
			checkSame(t, "the image", want, got)
			checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
		})
	}
}
