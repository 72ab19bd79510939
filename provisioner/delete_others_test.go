// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// second returns a volume with another name that names the same image, and is bound to a
// claim in another namespace.
func second(first *corev1.PersistentVolume) *corev1.PersistentVolume {
	pv := first.DeepCopy()
	pv.Name, pv.UID = "second", "uid-second"
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "elsewhere", Name: "copy"}
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	pv.Status.Phase = corev1.VolumeBound
	return pv
}

func asCSI(pv *corev1.PersistentVolume) {
	pv.Annotations = nil
	pv.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
		Driver: "rbd.csi.ceph.com", VolumeHandle: testImage,
		VolumeAttributes: map[string]string{"pool": testPool, "clusterID": "c", "staticVolume": "true"},
	}}
}

// cacheVolume puts a volume into the cache, in place of the one that is there.
func (f *fixture) cacheVolume(t *testing.T, pv *corev1.PersistentVolume) {
	t.Helper()
	if err := f.volumes.Update(pv); err != nil {
		t.Fatal(err)
	}
}

// An image stays for as long as a second volume names it, whatever made that volume.
// After that it is removed with the first one.
func TestDeleteWithSecondVolume(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*corev1.PersistentVolume)
		// kept says that the image stays.
		kept bool
	}{
		{"with our annotations", func(*corev1.PersistentVolume) {}, true},
		{"without annotations", func(pv *corev1.PersistentVolume) { pv.Annotations = nil }, true},
		{"by a CSI source", asCSI, true},
		{"available", func(pv *corev1.PersistentVolume) { pv.Status.Phase, pv.Spec.ClaimRef = corev1.VolumeAvailable, nil }, true},
		{"released, to be kept", func(pv *corev1.PersistentVolume) { pv.Status.Phase = corev1.VolumeReleased }, true},
		{"bound, to be deleted later", func(pv *corev1.PersistentVolume) {
			pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		}, true},
		{"deleted, and held by a finalizer", func(pv *corev1.PersistentVolume) { pv.DeletionTimestamp = new(metav1.Now()) }, true},
		{"released, to be deleted too", func(pv *corev1.PersistentVolume) {
			pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy = corev1.VolumeReleased, corev1.PersistentVolumeReclaimDelete
		}, false},
		{"in another pool", func(pv *corev1.PersistentVolume) { pv.Spec.RBD.RBDPool = "other" }, false},
		{"of another image", func(pv *corev1.PersistentVolume) { pv.Spec.RBD.RBDImage = "other" }, false},
		{"in another Ceph cluster", func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnClusterFSID] = "other" }, false},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			f.cacheVolume(t, pv)
			other := second(pv)
			test.change(other)
			f.cacheVolume(t, other)
			if test.kept {
				f.checkKept(t, pv, nil, `is also the image of volume "second"`, "it will be removed once that volume is gone")
				f.checkMade(t)
				if err := f.volumes.Delete(other); err != nil {
					t.Fatal(err)
				}
			}
			f.checkRemoved(t, pv)
		})
	}
}

// lateFixture is a fixture whose cache showed the release of a volume long ago. Volumes
// of the API server get into the cache when the API server returns them.
func lateFixture(t *testing.T) (*fixture, *corev1.PersistentVolume) {
	f := newFixture(t)
	pv := f.released(t)
	pv.UID = "uid-first"
	if _, err := f.client.CoreV1().PersistentVolumes().Create(t.Context(), pv, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	f.cacheVolume(t, pv)
	f.Seen(nil, pv)
	time.Sleep(20 * time.Second) // until it is no news any more
	return f, pv
}

// patches returns the patches of volumes that were sent.
func (f *fixture) patches() (patches []clienttesting.PatchAction) {
	for _, action := range f.client.Actions() {
		if patch, ok := action.(clienttesting.PatchAction); ok && action.Matches("patch", "persistentvolumes") {
			patches = append(patches, patch)
		}
	}
	return patches
}

// onPatch calls then once the volume is patched.
func (f *fixture) onPatch(then func(patched *corev1.PersistentVolume)) {
	f.client.PrependReactor("patch", "persistentvolumes", func(action clienttesting.Action) (bool, runtime.Object, error) {
		patch, ok := action.(clienttesting.PatchAction)
		if !ok || patch.GetPatchType() != types.MergePatchType {
			return false, nil, nil
		}
		_, begun, _ := strings.Cut(string(patch.GetPatch()), volume.AnnDeletionBegun+`":"`)
		begun, _, _ = strings.Cut(begun, `"`)
		obj, _, _ := f.volumes.GetByKey(patch.GetName())
		patched := obj.(*corev1.PersistentVolume).DeepCopy()
		patched.Annotations[volume.AnnDeletionBegun] = begun
		then(patched)
		return true, patched, nil
	})
}

// Where the cache could lag behind, it has to catch up before it is asked: a second
// volume that it did not know keeps the image.
func TestDeleteCatchesUp(t *testing.T) {
	for _, test := range []struct {
		name   string
		second bool
	}{{"no other volume", false}, {"a second one that the cache gets to know late", true}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, pv := lateFixture(t)
				f.onPatch(func(patched *corev1.PersistentVolume) {
					go func() {
						time.Sleep(time.Second)
						if test.second {
							f.cacheVolume(t, second(pv))
						}
						f.cacheVolume(t, patched)
					}()
				})
				err := f.Provisioner.Delete(f.withLog(t.Context()), pv)
				checkSame(t, "the number of patches", 1, len(f.patches()))
				if test.second {
					if err == nil || !strings.Contains(err.Error(), `is also the image of volume "second"`) {
						t.Errorf("got %v", err)
					}
					f.checkMade(t)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				checkSame(t, "the images", nil, f.ceph.Images(testPool))
			})
		})
	}
}

// If the cache does not catch up, or the volume can't be changed, the image stays.
func TestDeleteBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, pv := lateFixture(t)
		f.onPatch(func(*corev1.PersistentVolume) {})
		err := f.Provisioner.Delete(f.withLog(t.Context()), pv)
		if err == nil || !strings.Contains(err.Error(), "cache lags behind the API server") {
			t.Errorf("got %v", err)
		}
		f.client.PrependReactor("patch", "persistentvolumes", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("no room")
		})
		if err = f.Provisioner.Delete(f.withLog(t.Context()), pv); err == nil || !strings.Contains(err.Error(), "no room") {
			t.Errorf("got %v", err)
		}
		f.checkMade(t)
	})
}

// Neither a usual deletion needs a request, nor one where something else keeps the image
// from the trash. A resync of the cache does not make it fresh.
func TestDeleteWithoutRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, pv := lateFixture(t)
		stop := f.ceph.Watch(testPool, testImage, "10.0.0.7:0/1")
		if err := f.Provisioner.Delete(f.withLog(t.Context()), pv); !errors.Is(err, rbd.ErrImageInUse) {
			t.Errorf("got %v", err)
		}
		stop()
		f.Seen(pv, pv) // which says nothing new
		if err := f.Provisioner.Delete(f.withLog(t.Context()), pv); err == nil {
			t.Error("the cache was believed")
		}
		checkSame(t, "the number of patches", 1, len(f.patches()))
		f.client.ClearActions()
		f.Seen(nil, pv)
		if err := f.Provisioner.Delete(f.withLog(t.Context()), pv); err != nil {
			t.Fatal(err)
		}
		checkSame(t, "the number of patches", 0, len(f.patches()))
	})
}

// Images of another Kubernetes cluster stay, even if all else is equal. A provisioner
// that does not know its own cluster leaves all images that name a cluster, but only
// those.
func TestDeleteOfAnotherCluster(t *testing.T) {
	inBubble(t, "another one", func(t *testing.T) {
		f := newFixture(t)
		pv := f.released(t)
		f.clusterUID = "cluster-2"
		f.restart(t)
		f.checkKept(t, pv, nil, `belongs to another Kubernetes cluster, whose namespace kube-system has the UID "cluster-1": it is left alone`,
			"persistentVolumeReclaimPolicy to Retain", "bind the volume to a claim first")
		f.checkMade(t)
		// The deletion does not take it over either: whoever hands an image over wants to
		// keep it.
		pv.Annotations[volume.AnnFormerCluster] = testCluster
		f.checkKept(t, pv, nil, `has the UID "cluster-1"`)
		f.checkMade(t)
	})
	inBubble(t, "some, and ours is not known", func(t *testing.T) {
		f := newFixture(t)
		pv := f.released(t)
		f.clusterUID = ""
		f.restart(t)
		pv.Annotations[volume.AnnFormerCluster] = testCluster
		f.checkKept(t, pv, nil, `whose namespace kube-system has the UID "cluster-1"`, "may not read that UID of its own", "apply the manifests of rbac/")
		f.checkMade(t)
		f.ceph.ClearMetadata(testPool, testImage)
		f.checkRemoved(t, pv)
	})
}

// An image that an attempt of another cluster left under the name is not adopted either.
func TestProvisionOfAnotherCluster(t *testing.T) { synctest.Test(t, testProvisionOfAnotherCluster) }

func testProvisionOfAnotherCluster(t *testing.T) {
	f := newFixture(t)
	f.seed(t, f.ceph, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, marksWith(map[string]string{volume.MetaCluster: "cluster-2"}))
	_, _, err := f.provision(t.Context(), t)
	if err == nil || !strings.Contains(err.Error(), `its metadata rbd.ceph.com/kubernetes-cluster is "cluster-2", which is another Kubernetes cluster`) {
		t.Errorf("got %v", err)
	}
}

// mark adds to the metadata of an image.
func (f *fixture) mark(t *testing.T, image string, marks map[string]string) {
	t.Helper()
	pool, err := f.access.Open(t.Context(), f.location(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	if err := pool.SetMetadata(t.Context(), image, marks); err != nil {
		t.Fatal(err)
	}
}

// A clone that was handed to another cluster while it waited to be flattened stays as it
// is.
func TestFlattenOfAnotherCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.maxCloneDepth = 0
		f.restart(t)
		f.mustWait(t)
		f.mark(t, cloneImage, map[string]string{volume.MetaCluster: "cluster-2"})
		f.flattenFor(t, time.Minute)
		image, _ := f.ceph.Image(testPool, cloneImage)
		if image.Parent == "" {
			t.Error("the clone was flattened")
		}
		_, _, err := f.provision(t.Context(), t)
		if err == nil || !strings.Contains(err.Error(), "which is another Kubernetes cluster") {
			t.Errorf("got %v", err)
		}
	})
}

// A clone that an earlier version made, which did not know of clusters, is continued and
// gets the mark: before it is flattened, and after that, when it has data.
func TestCloneOfEarlierVersion(t *testing.T) {
	for _, flattened := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.maxCloneDepth = 0
			f.restart(t)
			f.mustWait(t)
			image, _ := f.ceph.Image(testPool, cloneImage)
			f.ceph.ClearMetadata(testPool, cloneImage)
			delete(image.Metadata, volume.MetaCluster)
			f.mark(t, cloneImage, image.Metadata)
			if flattened {
				f.flattenFor(t, time.Minute)
				f.ceph.Write(testPool, cloneImage)
			} else {
				f.mustWait(t)
				f.flattenFor(t, time.Minute)
			}
			f.mustProvision(t)
			image, _ = f.ceph.Image(testPool, cloneImage)
			checkSame(t, "its cluster", testCluster, image.Metadata[volume.MetaCluster])
		})
	}
}
