// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

func TestClone(t *testing.T) { synctest.Test(t, testClone) }

func testClone(t *testing.T) {
	f := newCloneFixture(t)
	pv := f.mustProvision(t)
	f.checkClone(t)
	f.checkIntents(t, cloneImage)
	want := f.wantVolume()
	want.Name, want.Spec.RBD.RBDImage = "pvc-5678", cloneImage
	want.Spec.MountOptions = []string{"nouuid"} // its XFS has the UUID of the source's
	checkSame(t, "the volume", want, pv)

	// Again, as after a volume that could not be saved. The source may be gone by then.
	checkSame(t, "the volume", want, f.mustProvision(t))
	f.checkClone(t)

	f.ceph.Fill(testPool, cloneImage, "changed")
	checkSame(t, "what the source has", "what the source has", f.ceph.Data(testPool, testImage))
}

// TestCloneRefused: the error says why a source can't be cloned, and nothing is left of
// the attempt.
func TestCloneRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*testing.T, *cloneFixture)
		want   string
	}{
		{"no such claim", func(t *testing.T, f *cloneFixture) {
			f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource.Name = "nothing" })
		}, `its source, claim "nothing", is not in namespace "apps": make it, or correct its name in spec.dataSource`},
		{"a name that leads elsewhere", func(t *testing.T, f *cloneFixture) {
			f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource.Name = "../../ceph/secrets/admin" })
		}, `its source, claim "../../ceph/secrets/admin",`},
		{"a claim without a volume", func(t *testing.T, f *cloneFixture) {
			f.changeSource(t, func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimPending })
		}, `its source, claim "data", is not bound to a volume yet: it will be cloned once it is bound`},
		{"a claim that has lost its volume", func(t *testing.T, f *cloneFixture) {
			f.changeSource(t, func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimLost })
		}, `its source, claim "data", has lost its volume`},
		{"a claim that goes", func(t *testing.T, f *cloneFixture) {
			f.changeSource(t, func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = ptr.To(metav1.Now()) })
		}, `its source, claim "data", is being deleted`},
		{"a volume that is gone", func(t *testing.T, f *cloneFixture) {
			if err := f.volumes.Delete(f.volume); err != nil {
				t.Fatal(err)
			}
		}, `its source, claim "data", has no volume that is bound to it`},
		{"another claim's volume", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.ClaimRef.UID = "theirs" })
		}, `its source, claim "data", has no volume that is bound to it`},
		{"a volume of no claim", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.ClaimRef = nil })
		}, `its source, claim "data", has no volume that is bound to it`},
		{"a volume that somebody made by hand", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { delete(pv.Annotations, volume.AnnProvisionedBy) })
		}, "was not made by this provisioner"},
		{"a volume of another provisioner", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnProvisionedBy] = "rbd.csi.ceph.com" })
		}, "was not made by this provisioner"},
		{"a volume of another identity", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnIdentity] = "there" })
		}, "was not made by this provisioner"},
		{"no rbd volume", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.RBD = nil })
		}, "was not made by this provisioner"},
		{"another mode", func(t *testing.T, f *cloneFixture) {
			f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = block })
		}, `its source, claim "data", has the volume mode Filesystem: set spec.volumeMode to it`},
		{"less than the source has", func(t *testing.T, f *cloneFixture) {
			f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("1023Mi") })
		}, `its source, claim "data", has 1Gi, more than the claim requests: request at least that`},
		{"another pool", func(t *testing.T, f *cloneFixture) {
			f.ceph.AddPool("ssd")
			f.putParameter(t, "pool", "ssd")
		}, `its source, claim "data", is in pool "rbd": use a StorageClass with that pool, since "ssd" is another one`},
		{"another cluster", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnClusterFSID] = "elsewhere" })
		}, `its source, claim "data", is in Ceph cluster "elsewhere": use a StorageClass with its monitors`},
		{"an image that is gone", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.RBD.RBDImage = "gone" })
		}, `its source, claim "data", can't be cloned: describe image "gone" in pool "rbd": image does not exist`},
		{"another volume's image", func(t *testing.T, f *cloneFixture) {
			f.changeSource(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pvc-renamed" })
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Name = "pvc-renamed" })
		}, `which is not its volume's`},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newCloneFixture(t)
			test.change(t, f)
			_, state, err := f.provision(t.Context(), t)
			if err == nil || !strings.Contains(err.Error(), test.want) || state != controller.ProvisioningNoChange {
				t.Errorf("got state %s, error %v; want %s", state, err, test.want)
			}
			f.checkNoClone(t)
			f.checkIntents(t)
		})
	}
}

func TestCloneLarger(t *testing.T) { synctest.Test(t, testCloneLarger) }

func testCloneLarger(t *testing.T) {
	f := newCloneFixture(t)
	f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("3Gi") })
	pv := f.mustProvision(t)
	checkSame(t, "the volume's capacity", "3Gi", ptr.To(pv.Spec.Capacity[corev1.ResourceStorage]).String())
	image, _ := f.ceph.Image(testPool, cloneImage)
	checkSame(t, "the clone's size", 3<<30, image.SizeBytes)
	f.checkSource(t, 1)
	checkSame(t, "what its file system has", "1Gi", pv.Annotations[volume.AnnFileSystemSize])

	// A block device has no file system.
	f = newCloneFixture(t)
	f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.VolumeMode = block })
	f.change(t, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests, c.Spec.VolumeMode = storage("3Gi"), block
	})
	checkSame(t, "what its file system has", "", f.mustProvision(t).Annotations[volume.AnnFileSystemSize])
}

// TestCloneFileSystem: the clone has the file system of its source, whatever its class
// says.
func TestCloneFileSystem(t *testing.T) {
	for _, test := range []struct {
		source, class string
		options, want []string
	}{
		{"ext4", "xfs", []string{"noatime"}, []string{"noatime"}},
		{"", "xfs", nil, nil},
		{"xfs", "ext4", []string{"noatime"}, []string{"noatime", "nouuid"}},
		{"xfs", "xfs", []string{"nouuid"}, []string{"nouuid"}},
	} {
		inBubble(t, test.source+" "+test.class, func(t *testing.T) {
			f := newCloneFixture(t)
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.RBD.FSType = test.source })
			f.putParameter(t, "fsType", test.class)
			f.options.StorageClass.MountOptions = test.options
			pv := f.mustProvision(t)
			checkSame(t, "the file system", test.source, pv.Spec.RBD.FSType)
			checkSame(t, "the mount options", test.want, pv.Spec.MountOptions)
		})
	}
}

// Volumes of the retired provisioner can be cloned: their images have no metadata.
func TestCloneOfRetired(t *testing.T) { synctest.Test(t, testCloneOfRetired) }

func testCloneOfRetired(t *testing.T) {
	f := newCloneFixture(t)
	f.retired(t)
	f.mustProvision(t)
	f.checkClone(t)
}

// TestCloneConflict: an image that has the clone's name but is not the clone stays as it
// is.
func TestCloneConflict(t *testing.T) {
	for _, test := range []struct {
		name string
		seed func(*testing.T, *cloneFixture)
		want string
	}{
		{"an image with data", func(t *testing.T, f *cloneFixture) {
			f.seed(t, f.ceph, cloneImage, rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
			f.ceph.Write(testPool, cloneImage)
		}, "it has data"},
		{"a larger image", func(t *testing.T, f *cloneFixture) {
			f.seed(t, f.ceph, cloneImage, rbd.ImageSpec{SizeBytes: 2 << 30}, nil)
		}, "its size differs"},
		{"an image that is marked in part", func(t *testing.T, f *cloneFixture) {
			f.seed(t, f.ceph, cloneImage, rbd.ImageSpec{SizeBytes: 1 << 30}, map[string]string{volume.MetaIdentity: testIdentity})
		}, "it is not a clone of the claim's source"},
		{"somebody's", func(t *testing.T, f *cloneFixture) {
			f.seed(t, f.ceph, cloneImage, rbd.ImageSpec{SizeBytes: 1 << 30}, map[string]string{volume.MetaVolume: "theirs"})
		}, `its metadata kubernetes.io/created-for/pv/name is "theirs"`},
		{"another image's clone", func(t *testing.T, f *cloneFixture) {
			f.seed(t, f.ceph, "theirs", rbd.ImageSpec{SizeBytes: 1 << 30}, f.before.Metadata)
			f.ceph.Clone(testPool, "theirs", cloneImage)
		}, `its metadata kubernetes.io/created-for/pv/name is "pvc-1234"`},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newCloneFixture(t)
			test.seed(t, f)
			before, _ := f.ceph.Image(testPool, cloneImage)
			_, _, err := f.provision(t.Context(), t)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
			after, _ := f.ceph.Image(testPool, cloneImage)
			checkSame(t, "the image", before, after)
			f.checkSource(t, 0)
		})
	}
	inBubble(t, "a clone for a claim that wants none", func(t *testing.T) {
		f := newFixture(t)
		f.seed(t, f.ceph, "theirs", rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
		f.ceph.Clone(testPool, "theirs", testImage)
		_, _, err := f.provision(t.Context(), t)
		if err == nil || !strings.Contains(err.Error(), "it is a clone of another image") {
			t.Errorf("got %v", err)
		}
	})
}

// TestCloneIntent: the intent has all that the next attempt may need.
func TestCloneIntent(t *testing.T) { synctest.Test(t, testCloneIntent) }

func testCloneIntent(t *testing.T) {
	f := newCloneFixture(t)
	f.mustProvision(t)
	pool, err := f.access.Open(t.Context(), f.location(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	got, err := f.journal.Intents.Of(t.Context(), pool, cloneImage)
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, "the intent", journal.Intent{
		Image: cloneImage, Namespace: "apps", Claim: "copy", ClaimUID: "5678", Volume: "pvc-5678", SizeBytes: 1 << 30,
		SourceID: f.before.ID, SourceVolume: "pvc-1234", SourceFSType: "xfs", SourceBytes: 1 << 30,
	}, got)
}

// Without a journal, the provisioner still makes clones, but not of an image that belongs
// to a cluster.
func TestCloneWithoutJournal(t *testing.T) { synctest.Test(t, testCloneWithoutJournal) }

func testCloneWithoutJournal(t *testing.T) {
	f := newCloneFixture(t)
	f.clusterUID = ""
	f.restart(t)
	if _, _, err := f.provision(t.Context(), t); err == nil || !strings.Contains(err.Error(), "may not read the UID of its own namespace kube-system") {
		t.Errorf("got %v", err)
	}

	f.ceph.ClearMetadata(testPool, testImage)
	f.before, _ = f.ceph.Image(testPool, testImage)
	f.mustProvision(t)
	f.checkClone(t)
	f.mustProvision(t)
	f.checkClone(t)
	f.checkIntents(t)
}
