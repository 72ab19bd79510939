// SPDX-License-Identifier: Apache-2.0

package provisioner

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v10/controller"

	"ceph.com/rbd-provisioner/provisioner/journal"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

func TestClone(t *testing.T) {
	f := newCloneFixture(t)
	pv := f.mustProvision(t)
	f.checkClone(t)
	f.checkIntents(t, cloneImage)
	want := f.wantVolume()
	want.Name, want.Spec.RBD.RBDImage = "pvc-5678", cloneImage
	want.Spec.MountOptions = []string{"nouuid"} // its XFS has the UUID of the source's
	checkSame(t, "the volume", want, pv)

	// Again, as when the volume could not be saved; the source may be gone by then.
	checkSame(t, "the volume", want, f.mustProvision(t))
	f.checkClone(t)

	f.ceph.Fill(testPool, cloneImage, "changed")
	checkSame(t, "what the source has", "what the source has", f.ceph.Data(testPool, testImage))
}

// TestCloneRefused: what can't be cloned is refused with a reason, and nothing is
// left of the attempt.
func TestCloneRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*testing.T, *cloneFixture)
		want   string
		// asked says that Ceph has to be asked for it.
		asked bool
	}{
		{"no such claim", func(t *testing.T, f *cloneFixture) {
			f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource.Name = "nothing" })
		}, `its source, claim "nothing", is not in namespace "apps": make it, or correct its name in spec.dataSource`, false},
		{"a name that leads elsewhere", func(t *testing.T, f *cloneFixture) {
			f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.DataSource.Name = "../../ceph/secrets/admin" })
		}, `its source, claim "../../ceph/secrets/admin",`, false},
		{"a claim without a volume", func(t *testing.T, f *cloneFixture) {
			f.changeSource(t, func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimPending })
		}, `its source, claim "data", is not bound to a volume yet: it is cloned once it is`, false},
		{"a claim that goes", func(t *testing.T, f *cloneFixture) {
			f.changeSource(t, func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = ptr.To(metav1.Now()) })
		}, `its source, claim "data", is being deleted`, false},
		{"a volume that is gone", func(t *testing.T, f *cloneFixture) {
			if err := f.journals.volumes.Delete(f.volume); err != nil {
				t.Fatal(err)
			}
		}, `its source, claim "data", has no volume that is bound to it`, false},
		{"another claim's volume", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.ClaimRef.UID = "theirs" })
		}, `its source, claim "data", has no volume that is bound to it`, false},
		{"a volume of no claim", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.ClaimRef = nil })
		}, `its source, claim "data", has no volume that is bound to it`, false},
		{"a volume that somebody made by hand", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { delete(pv.Annotations, volume.AnnProvisionedBy) })
		}, "was not made by this provisioner", false},
		{"a volume of another provisioner", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnProvisionedBy] = "rbd.csi.ceph.com" })
		}, "was not made by this provisioner", false},
		{"a volume of another identity", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnIdentity] = "there" })
		}, "was not made by this provisioner", false},
		{"no rbd volume", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.RBD = nil })
		}, "was not made by this provisioner", false},
		{"another mode", func(t *testing.T, f *cloneFixture) {
			f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = block })
		}, `its source, claim "data", has the volume mode Filesystem: set spec.volumeMode to it`, false},
		{"less than the source has", func(t *testing.T, f *cloneFixture) {
			f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("1023Mi") })
		}, `its source, claim "data", has 1Gi, more than the claim requests: request at least that`, false},
		{"another pool", func(t *testing.T, f *cloneFixture) {
			f.ceph.AddPool("ssd")
			f.putParameter(t, "pool", "ssd")
		}, `its source, claim "data", is in pool "rbd": use a StorageClass with that pool, since "ssd" is another one`, false},
		{"another cluster", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Annotations[volume.AnnClusterFSID] = "elsewhere" })
		}, `its source, claim "data", is in Ceph cluster "elsewhere": use a StorageClass with its monitors`, true},
		{"an image that is gone", func(t *testing.T, f *cloneFixture) {
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.RBD.RBDImage = "gone" })
		}, `its source, claim "data", can't be cloned: describe image "gone" in pool "rbd": image does not exist`, true},
		{"another volume's image", func(t *testing.T, f *cloneFixture) {
			f.changeSource(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = "pvc-renamed" })
			f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Name = "pvc-renamed" })
		}, `which is not its volume's`, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newCloneFixture(t)
			connects := f.connector.connects.Load()
			test.change(t, f)
			_, state, err := f.provision(t.Context(), t)
			if err == nil || !strings.Contains(err.Error(), test.want) || state != controller.ProvisioningNoChange {
				t.Errorf("got state %s, error %v; want %s", state, err, test.want)
			}
			if asked := f.connector.connects.Load() > connects; asked != test.asked {
				t.Errorf("that Ceph was asked is %v", asked)
			}
			f.checkNoClone(t)
			f.checkIntents(t)
		})
	}
}

func TestCloneLarger(t *testing.T) {
	f := newCloneFixture(t)
	f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("3Gi") })
	pv := f.mustProvision(t)
	checkSame(t, "the volume's capacity", "3Gi", ptr.To(pv.Spec.Capacity[corev1.ResourceStorage]).String())
	image, _ := f.ceph.Image(testPool, cloneImage)
	checkSame(t, "the clone's size", 3<<30, image.SizeBytes)
	f.checkSource(t, 1)
	checkSame(t, "what its file system has", "1Gi", pv.Annotations[volume.AnnFileSystemSize])

	// A device has none.
	f = newCloneFixture(t)
	f.changeVolume(t, func(pv *corev1.PersistentVolume) { pv.Spec.VolumeMode = block })
	f.change(t, func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests, c.Spec.VolumeMode = storage("3Gi"), block
	})
	checkSame(t, "what its file system has", "", f.mustProvision(t).Annotations[volume.AnnFileSystemSize])
}

// TestCloneFileSystem: the clone has the file system of its source, whatever its
// class says.
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
		t.Run(test.source+" "+test.class, func(t *testing.T) {
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
func TestCloneOfRetired(t *testing.T) {
	f := newCloneFixture(t)
	f.retired(t)
	f.mustProvision(t)
	f.checkClone(t)
}

// cloneCrashes are the moments at which a process dies that makes a clone that is
// larger than its source.
func cloneCrashes() map[string]rbdtest.FakeFault {
	return map[string]rbdtest.FakeFault{
		"before the intent":            {Call: rbdtest.CallSetNotes},
		"after the intent":             {Call: rbdtest.CallSetNotes, TakesEffect: true},
		"before the snapshot":          {Call: rbdtest.CallSnapshotImage},
		"after the snapshot":           {Call: rbdtest.CallSnapshotImage, TakesEffect: true},
		"before the clone":             {Call: rbdtest.CallCloneImage},
		"in the clone":                 {Call: rbdtest.CallCloneImage, HalfWay: true},
		"after the clone":              {Call: rbdtest.CallCloneImage, TakesEffect: true},
		"before the snapshot's end":    {Call: rbdtest.CallRemoveSnapshot},
		"after the snapshot's end":     {Call: rbdtest.CallRemoveSnapshot, TakesEffect: true},
		"before it grows":              {Call: rbdtest.CallGrowImage},
		"after it has grown":           {Call: rbdtest.CallGrowImage, TakesEffect: true},
		"before the mark":              {Call: rbdtest.CallSetMetadata},
		"after the mark":               {Call: rbdtest.CallSetMetadata, TakesEffect: true},
		"before the source is seen":    {Call: rbdtest.CallImage, Image: testImage},
		"before it is known to be new": {Call: rbdtest.CallImage, Image: cloneImage},
	}
}

// cutOff lets a process die while it makes the clone.
func (f *cloneFixture) cutOff(t *testing.T, fault rbdtest.FakeFault) {
	t.Helper()
	f.change(t, func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = storage("2Gi") })
	// Calls after it fail, too: a process that is dead cleans nothing up.
	fault.Err = errors.New("killed")
	f.ceph.Fake(fault)
	if fault.Call == rbdtest.CallCloneImage || fault.Call == rbdtest.CallSnapshotImage {
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot, Err: errors.New("killed")})
	}
	if _, _, err := f.provision(t.Context(), t); err == nil {
		t.Fatal("it made a volume")
	}
	f.restart(t, false)
	f.config.MaxCloneDepth = 4
	f.ceph.ClearFaults()
}

// TestCloneCutOff kills a process at each moment; the next one makes the volume.
func TestCloneCutOff(t *testing.T) {
	for name, fault := range cloneCrashes() {
		t.Run(name, func(t *testing.T) {
			f := newCloneFixture(t)
			f.cutOff(t, fault)
			pv := f.mustProvision(t)
			checkSame(t, "the image", cloneImage, pv.Spec.RBD.RBDImage)
			image, _ := f.ceph.Image(testPool, cloneImage)
			checkSame(t, "the clone's size", 2<<30, image.SizeBytes)
			checkSame(t, "the clone's volume", "pvc-5678", image.Metadata[metaVolume])
			checkSame(t, "what the clone has", "what the source has", f.ceph.Data(testPool, cloneImage))
			f.checkSource(t, 1)
			checkSame(t, "the remains", nil, f.ceph.Remains(testPool))
			f.checkIntents(t, cloneImage)
		})
	}
}

// TestCloneRecover kills a process at each moment, and the claim is gone when the
// next one comes: nothing is left.
func TestCloneRecover(t *testing.T) {
	for name, fault := range cloneCrashes() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newCloneFixture(t)
				f.cutOff(t, fault)
				f.dropLive(t)
				f.recoverAll(t)
				f.checkNoClone(t)
				f.checkIntents(t)
			})
		})
	}
}

// TestCloneGone: a claim that went while its clone was made gets its volume all the
// same, to be released, if that was made; or else nothing.
func TestCloneGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.mustProvision(t)
		f.dropLive(t)
		f.mustProvision(t)
		f.checkClone(t)
	})
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallSetMetadata})
		f.dropLive(t)
		_, _, err := f.provision(t.Context(), t)
		checkIgnored(t, err)
		f.recoverAll(t)
		f.checkNoClone(t)
		f.checkIntents(t)
	})
}

// Images that have the clone's name and are not it are left alone.
func TestCloneConflict(t *testing.T) {
	for _, test := range []struct {
		name string
		seed func(*testing.T, *cloneFixture)
		want string
	}{
		{"an empty image", func(t *testing.T, f *cloneFixture) {
			f.seed(t, f.ceph, cloneImage, rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
		}, "it is not a clone of the claim's source"},
		{"somebody's", func(t *testing.T, f *cloneFixture) {
			f.seed(t, f.ceph, cloneImage, rbd.ImageSpec{SizeBytes: 1 << 30}, map[string]string{metaVolume: "theirs"})
		}, `its metadata kubernetes.io/created-for/pv/name is "theirs"`},
		{"another image's clone", func(t *testing.T, f *cloneFixture) {
			f.seed(t, f.ceph, "theirs", rbd.ImageSpec{SizeBytes: 1 << 30}, f.before.Metadata)
			f.ceph.Clone(testPool, "theirs", cloneImage)
		}, `its metadata kubernetes.io/created-for/pv/name is "pvc-1234"`},
	} {
		t.Run(test.name, func(t *testing.T) {
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
	t.Run("a clone for a claim that wants none", func(t *testing.T) {
		f := newFixture(t)
		f.seed(t, f.ceph, "theirs", rbd.ImageSpec{SizeBytes: 1 << 30}, nil)
		f.ceph.Clone(testPool, "theirs", testImage)
		_, _, err := f.provision(t.Context(), t)
		if err == nil || !strings.Contains(err.Error(), "it is a clone of another image") {
			t.Errorf("got %v", err)
		}
	})
}

// TestClonesAreDeleted: source and clone go in either order, and nothing is left.
func TestClonesAreDeleted(t *testing.T) {
	t.Run("the source first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			clone := f.bind(t, f.mustProvision(t))
			f.release(t, f.source, f.volume)
			f.purgeFor(t, 10*time.Minute)
			checkSame(t, "the images", []string{cloneImage}, f.ceph.Images(testPool))
			checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
			checkSame(t, "what the clone has", "what the source has", f.ceph.Data(testPool, cloneImage))
			f.release(t, f.options, clone)
			f.purgeFor(t, 3*purgeEvery) // not after the longest backoff
			f.checkPurged(t)
		})
	})
	t.Run("the clone first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.release(t, f.options, f.bind(t, f.mustProvision(t)))
			f.purgeFor(t, time.Minute)
			f.checkNoClone(t)
			f.release(t, f.source, f.volume)
			f.purgeFor(t, time.Minute)
			f.checkPurged(t)
		})
	})
	// A snapshot that an attempt left is no obstacle, one that somebody made is.
	t.Run("with a snapshot that was left", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.cutOff(t, rbdtest.FakeFault{Call: rbdtest.CallCloneImage})
			f.ceph.AddSnapshot(testPool, testImage, "somebody's")
			err := f.Delete(f.withLog(t.Context()), f.volume)
			if !errors.Is(err, rbd.ErrImageHasSnapshots) || !strings.Contains(err.Error(), `snapshots: somebody's:`) {
				t.Errorf("got %v", err)
			}
			f.ceph.RemoveSnapshot(testPool, testImage, "somebody's")
			f.release(t, f.source, f.volume)
			f.purgeFor(t, time.Minute)
			f.dropLive(t)
			f.recoverAll(t)
			f.checkPurged(t)
		})
	})
	// One that reached the image when it was in the trash already.
	t.Run("with a snapshot that came late", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.ceph.AddSnapshot(testPool, testImage, cloneSnapshot("5678"))
			f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallRemoveSnapshot, Err: nil, Before: func() {
				f.ceph.AddSnapshot(testPool, testImage, cloneSnapshot("9"))
			}})
			f.release(t, f.source, f.volume)
			checkSame(t, "the trash", []string{testImage}, f.ceph.Trash(testPool))
			f.purgeFor(t, time.Minute)
			f.checkPurged(t)
		})
	})
}

// TestFlatten: a clone that depends on more images than it may is flattened, once it
// has its volume.
func TestFlatten(t *testing.T) {
	for _, restarted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newCloneFixture(t)
			f.config.MaxCloneDepth = 2
			flattened := 0
			f.config.Flattened = func() { flattened++ }
			f.chain(t, 2)
			checkSame(t, "the clones to flatten", 0, f.Unflattened())

			f.options = f.cloneOf("chain-2", "chain-3", "3")
			f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
			pv := f.mustProvision(t)
			f.flattenFor(t, time.Minute)
			checkSame(t, "the clones to flatten", 1, f.Unflattened())
			checkSame(t, "their notes", chainImage(3), f.flattenings(t))
			checkSame(t, "the clones that were flattened before they have volumes", 0, flattened)

			f.bind(t, pv)
			if restarted {
				f.restart(t, false)
				f.config.Flattened = func() { flattened++ }
				f.recoverAll(t)
			}
			f.flattenFor(t, 10*time.Minute)
			checkSame(t, "the clones to flatten", 0, f.Unflattened())
			checkSame(t, "their notes", "", f.flattenings(t))
			checkSame(t, "the clones that were flattened", 1, flattened)
			for i, parent := range map[int]bool{1: true, 2: true, 3: false} {
				image, _ := f.ceph.Image(testPool, chainImage(i))
				if (image.Parent != "") != parent {
					t.Errorf("clone %d depends on %q", i, image.Parent)
				}
				checkSame(t, "what it has", "what the source has", f.ceph.Data(testPool, chainImage(i)))
			}
			checkSame(t, "the log of it", 1, f.countLog("Clone flattened"))
		})
	}
}

// A clone that goes before it is flattened is forgotten.
func TestFlattenGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.config.MaxCloneDepth = 0
		f.release(t, f.options, f.bind(t, f.mustProvision(t)))
		checkSame(t, "their notes", cloneImage, f.flattenings(t))
		f.purgeFor(t, time.Minute)
		f.flattenFor(t, 10*time.Minute)
		checkSame(t, "the clones to flatten", 0, f.Unflattened())
		checkSame(t, "their notes", "", f.flattenings(t))
		f.checkNoClone(t)
	})
}

// What goes wrong is tried again; the log says it once.
func TestFlattenFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.config.MaxCloneDepth = 0
		f.bind(t, f.mustProvision(t))
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Err: rbd.ErrPoolFull, Times: 3})
		f.flattenFor(t, 15*time.Second)
		checkSame(t, "the clones to flatten", 1, f.Unflattened())
		f.flattenFor(t, 5*time.Minute)
		checkSame(t, "the clones to flatten", 0, f.Unflattened())
		checkSame(t, "the log of it", 1, f.countLog("could not be flattened"))
		image, _ := f.ceph.Image(testPool, cloneImage)
		checkSame(t, "the clone's parent", "", image.Parent)
	})
}

// TestFlattenLong: a flattening that outlives its deadline goes on, and its clone is
// not deleted meanwhile.
func TestFlattenLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newCloneFixture(t)
		f.config.MaxCloneDepth = 0
		pv := f.bind(t, f.mustProvision(t))
		stop := func() {}
		f.ceph.Fake(rbdtest.FakeFault{Call: rbdtest.CallFlattenImage, Before: func() {
			stop = f.ceph.Watch(testPool, cloneImage, "10.0.0.7:0/1")
			time.Sleep(time.Hour)
			stop()
		}})
		f.flattenFor(t, 10*time.Minute)
		checkSame(t, "the clones to flatten", 1, f.Unflattened())
		err := f.Delete(f.withLog(t.Context()), pv)
		if err == nil || !strings.Contains(err.Error(), "is a clone that is being flattened: it is removed once that is done") {
			t.Errorf("got %v", err)
		}
		f.flattenFor(t, time.Hour)
		checkSame(t, "the clones to flatten", 0, f.Unflattened())
		f.release(t, f.options, pv)
		f.purgeFor(t, time.Minute)
		f.checkNoClone(t)
	})
}

// Linux maps no image that depends on too many others, or has too many snapshots.
func TestCloneLimits(t *testing.T) {
	t.Run("depth", func(t *testing.T) {
		f := newCloneFixture(t)
		f.chain(t, CloneDepthLimit)
		checkSame(t, "the clones to flatten", CloneDepthLimit-4, f.Unflattened())
		f.options = f.cloneOf("chain-16", "chain-17", "17")
		f.putLive(t, func(*corev1.PersistentVolumeClaim) {})
		_, _, err := f.provision(t.Context(), t)
		if err == nil || !strings.Contains(err.Error(), "it is cloned once it is flattened") {
			t.Errorf("got %v", err)
		}
		image, _ := f.ceph.Image(testPool, chainImage(16))
		checkSame(t, "the source's snapshots", nil, image.Snapshots)
	})
	t.Run("snapshots", func(t *testing.T) {
		for _, test := range []struct {
			has     int
			flatten int
			want    string
		}{
			{manySnapshots - 1, 0, ""},
			{manySnapshots, 1, ""},
			{snapshotsOfLinux, 0, "has nearly as many clones and snapshots as Linux can map an image with"},
		} {
			f := newCloneFixture(t)
			f.connector.show = func(image *rbd.Image) {
				if image.ID == f.before.ID {
					image.Kept = test.has
				}
			}
			_, _, err := f.provision(t.Context(), t)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("%d snapshots: got %v", test.has, err)
			}
			checkSame(t, "the clones to flatten", test.flatten, f.Unflattened())
		}
	})
}

// Intents of a version that made no clones, and those for clones, are read by either.
func TestCloneIntent(t *testing.T) {
	f := newCloneFixture(t)
	f.mustProvision(t)
	pool, err := f.config.Access.Open(t.Context(), f.location(t))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	got, _, err := f.journal.Read(t.Context(), pool)
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, "the intents", []journal.Intent{{
		Image: cloneImage, Namespace: "apps", Claim: "copy", ClaimUID: "5678", Volume: "pvc-5678", SizeBytes: 1 << 30,
		SourceID: f.before.ID, SourceVolume: "pvc-1234",
	}}, got)
}
