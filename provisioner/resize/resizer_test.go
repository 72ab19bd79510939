// SPDX-License-Identifier: Apache-2.0

package resize

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

func TestCanSupport(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*corev1.PersistentVolume)
		want   bool
	}{
		{"one of ours", func(*corev1.PersistentVolume) {}, true},
		{"of the retired provisioner", retire, true},
		{"of our node plugin", asCSI, true},
		{"without an identity", func(pv *corev1.PersistentVolume) { delete(pv.Annotations, volume.AnnIdentity) }, true},
		{"of another identity", func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnIdentity] = "there" }, false},
		{"of another provisioner", func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnProvisionedBy] = "kubernetes.io/rbd" }, false},
		{"made by hand", func(pv *corev1.PersistentVolume) { pv.Annotations = nil }, false},
		{"handed over to ceph-csi", func(pv *corev1.PersistentVolume) {
			pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "rbd.csi.ceph.com"}}
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, nil)
			claim, pv := claimAndVolume("")
			test.change(pv)
			// What kube-controller-manager writes up to Kubernetes 1.30.
			metav1.SetMetaDataAnnotation(&claim.ObjectMeta, "volume.kubernetes.io/storage-resizer", "kubernetes.io/rbd")
			if got := f.resizer().CanSupport(pv, claim); got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// asCSI gives a volume the source of our node plugin.
func asCSI(pv *corev1.PersistentVolume) {
	record, err := volume.Read(pv)
	if err != nil {
		panic(err) // claimAndVolume writes volumes that Read reads
	}
	record.CSI = true
	record.Write(pv)
}

// retire leaves of a volume what the retired provisioner wrote.
func retire(pv *corev1.PersistentVolume) {
	for _, key := range []string{volume.AnnClusterFSID, volume.AnnDeletionUser, volume.AnnDeletionSecretName, volume.AnnDeletionSecretNamespace} {
		delete(pv.Annotations, key)
	}
}

func TestResize(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)
		put    func(*fixture)
		size   string
		want   uint64
	}{
		{name: "larger", size: "2Gi", want: 2 * gib},
		{name: "rounded up to a MiB", size: "2G", want: 1908 << 20},
		{name: "the same", size: "1Gi", want: gib},
		{name: "smaller", size: "1Mi", want: gib},
		{name: "an image that is larger already", put: func(f *fixture) { f.grow(5 * gib) }, size: "2Gi", want: 5 * gib},
		{name: "an image of an odd size", put: func(f *fixture) { f.grow(gib + 1) }, size: "1Gi", want: gib + 1},
		{name: "an image that is mapped", put: func(f *fixture) { f.ceph.Watch(testPool, testImage, "10.0.0.7:0/1") }, size: "2Gi", want: 2 * gib},
		{name: "an image with a snapshot", put: func(f *fixture) { f.ceph.AddSnapshot(testPool, testImage, "one") }, size: "2Gi", want: 2 * gib},
		{name: "an image that says nothing about itself", put: func(f *fixture) {
			f.removeImage()
			f.make(testImage, gib, nil)
		}, size: "2Gi", want: 2 * gib},
		{name: "a volume of the retired provisioner", change: func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			retire(pv)
		}, size: "2Gi", want: 2 * gib},
		{name: "a volume of our node plugin", change: func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			asCSI(pv)
		}, size: "2Gi", want: 2 * gib},
		{name: "a class that is gone", change: func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Spec.StorageClassName = "gone"
		}, size: "2Gi", want: 2 * gib},
		{name: "monitors that moved", change: func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Spec.RBD.CephMonitors = []string{"10.0.0.9:6789"}
		}, size: "2Gi", want: 2 * gib},
		{name: "up to the claim's limit", change: func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			claim.Spec.Resources.Limits = storage("2Gi")
		}, size: "2Gi", want: 2 * gib},
		{name: "a claim that is gone", change: func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			claim.Name = "other"
		}, size: "2Gi", want: 2 * gib},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, test.change)
			if test.put != nil {
				test.put(f)
			}
			before := f.pv.DeepCopy()
			var grown []int64
			if f.size() < test.want {
				grown = append(grown, int64(test.want))
			}
			for range 2 { // The second time finds it done.
				got, fsResize, err := f.resizer().Resize(f.pv, resource.MustParse(test.size))
				if err != nil {
					t.Fatal(err)
				}
				if got.Value() != int64(test.want) || f.size() != test.want {
					t.Errorf("got %s, the image has %d, want %d", got.String(), f.size(), test.want)
				}
				if fsResize {
					t.Error("a device has no file system to grow")
				}
			}
			if before.String() != f.pv.String() {
				t.Error("it changed the volume that it was given")
			}
			if len(f.results) != 2 || f.results[0] != nil {
				t.Errorf("it told of %v", f.results)
			}
			if !slices.Equal(f.sizes, grown) {
				t.Errorf("it told of the sizes %v, want %v", f.sizes, grown)
			}
			f.checkClosed()
		})
	}
}

func TestResizeFileSystem(t *testing.T) {
	f := newFixture(t, nil)
	mode := corev1.PersistentVolumeFilesystem
	for _, m := range []*corev1.PersistentVolumeMode{nil, &mode} {
		f.pv.Spec.VolumeMode = m
		if _, fsResize, err := f.resizer().Resize(f.pv, resource.MustParse("2Gi")); err != nil || !fsResize {
			t.Errorf("got %v, %v, want that the file system is to be grown", fsResize, err)
		}
	}
}

// Each failure leaves the image as it is, or as an answer that was lost left it,
// says the same at each retry, and is over once its cause is.
func TestResizeFaults(t *testing.T) {
	const unclear = codes.Unknown // no code at all
	fault := func(call rbdtest.Call, err error) func(*fixture) {
		return func(f *fixture) { f.ceph.Fake(rbdtest.FakeFault{Call: call, Err: err, Times: 2}) }
	}
	lost := func(f *fixture) {
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallGrowImage, Err: rbd.ErrTimeout, TakesEffect: true})
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Err: nil})
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallImage, Err: rbd.ErrTimeout})
	}
	for _, test := range []struct {
		name   string
		change func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)
		put    func(*fixture)
		want   []string
		code   codes.Code
		mend   func(*fixture)
	}{
		{name: "the image is gone", put: (*fixture).removeImage, code: codes.Internal,
			want: []string{testImage, "image does not exist: bring it back under its name, or delete the claim"},
			mend: func(f *fixture) { f.make(testImage, gib, nil) }},
		{name: "the image is another volume's", code: codes.Internal,
			put:  func(f *fixture) { f.mark(testImage, map[string]string{volume.MetaVolume: "pvc-other"}) },
			want: []string{`is not this volume's: its metadata ` + volume.MetaVolume + ` is "pvc-other": it is left alone`},
			mend: func(f *fixture) { f.mark(testImage, map[string]string{volume.MetaVolume: "pvc-1234"}) }},
		{name: "the image is another provisioner's", code: codes.Internal,
			put:  func(f *fixture) { f.mark(testImage, map[string]string{volume.MetaIdentity: "there"}) },
			want: []string{`its metadata ` + volume.MetaIdentity + ` is "there"`},
			mend: func(f *fixture) { f.mark(testImage, map[string]string{volume.MetaIdentity: testIdentity}) }},
		{name: "the image is another cluster's", code: codes.Internal,
			put:  func(f *fixture) { f.mark(testImage, map[string]string{volume.MetaCluster: "cluster-2"}) },
			want: []string{`belongs to another Kubernetes cluster, whose namespace kube-system has the UID "cluster-2": it is left alone`},
			mend: func(f *fixture) { f.pv.Annotations[volume.AnnFormerCluster] = "cluster-2" }},
		{name: "the pool is full", put: func(f *fixture) { f.ceph.SetFull(testPool, true) }, code: codes.Internal,
			want: []string{"pool is full or over its quota: free space, add storage, or raise the quota"},
			mend: func(f *fixture) { f.ceph.SetFull(testPool, false) }},
		{name: "no permission", put: fault(rbdtest.CallGrowImage, rbd.ErrPermissionDenied), code: codes.Internal,
			want: []string{`permission denied: client.admin, with the key in secret "kube-system/admin", needs at least`}},
		{name: "no monitor answers", put: fault(rbdtest.CallConnect, rbd.ErrUnreachable), code: codes.Internal,
			want: []string{"no monitor answered"}},
		{name: "no answer in time", put: fault(rbdtest.CallGrowImage, rbd.ErrTimeout), code: unclear,
			want: []string{"no answer in time, the outcome is unknown: check the health"}},
		{name: "an answer that was lost", put: lost, code: unclear,
			want: []string{"no answer in time"}},
		{name: "the connection was lost", put: fault(rbdtest.CallImage, rbd.ErrConnectionLost), code: unclear,
			want: []string{"connection to the cluster was lost"}},
		{name: "a replica that may not lead", put: func(f *fixture) { f.leading = func() bool { return false } }, code: unclear,
			want: []string{"did not renew its lease"},
			mend: func(f *fixture) { f.leading = func() bool { return true } }},
		{name: "nobody says who may", code: codes.Internal,
			change: func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
				retire(pv)
				pv.Spec.StorageClassName = "gone"
			},
			want: []string{`its StorageClass "gone" is gone: make the class again, or set the volume's annotations`},
			mend: func(f *fixture) { f.pv.Spec.StorageClassName = "class" }},
		{name: "over the claim's limit", code: codes.OutOfRange,
			change: func(claim *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
				claim.Spec.Resources.Limits = storage("1536Mi")
			},
			want: []string{"the claim's limit 1536Mi is below its request rounded up to a MiB, 2Gi"},
			mend: func(f *fixture) { f.pv.Spec.ClaimRef = nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t, test.change)
			if test.put != nil {
				test.put(f)
			}
			texts := map[string]bool{}
			for range 2 {
				before := f.size()
				_, _, err := f.resizer().Resize(f.pv, resource.MustParse("2Gi"))
				if err == nil {
					t.Fatal("it succeeded")
				}
				if got := f.size(); got != before && test.name != "an answer that was lost" {
					t.Errorf("the image had %d bytes and has %d", before, got)
				}
				for _, want := range test.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("got %q, want it to say %q", err, want)
					}
				}
				if strings.Contains(err.Error(), "rpc error") || strings.Contains(err.Error(), "\n") {
					t.Errorf("not for people: %q", err)
				}
				if _, coded := status.FromError(err); coded != (test.code != unclear) || status.Code(err) != test.code {
					t.Errorf("got code %s, want %s", status.Code(err), test.code)
				}
				if test.name != "an answer that was lost" {
					texts[err.Error()] = true
				}
			}
			if len(texts) > 1 {
				t.Errorf("the text differs between attempts: %v", texts)
			}
			f.checkClosed()
			if test.mend != nil {
				test.mend(f)
			}
			got, _, err := f.resizer().Resize(f.pv, resource.MustParse("2Gi"))
			if err != nil || got.Value() != 2*gib || f.size() != 2*gib {
				t.Errorf("after it was mended: got %s, %v, the image has %d", got.String(), err, f.size())
			}
			f.checkClosed()
		})
	}
}

func TestResizeTooLarge(t *testing.T) {
	f := newFixture(t, nil)
	_, _, err := f.resizer().Resize(f.pv, resource.MustParse("8Ei"))
	if status.Code(err) != codes.OutOfRange || !strings.Contains(err.Error(), "more storage than an image can have") {
		t.Errorf("got %v", err)
	}
	f.pv.Spec.RBD.RBDImage = ""
	if _, _, err := f.resizer().Resize(f.pv, resource.MustParse("2Gi")); err == nil || !strings.Contains(err.Error(), "names no monitors, pool or image") {
		t.Errorf("got %v", err)
	}
}
