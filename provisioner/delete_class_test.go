// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"ceph.com/rbd-provisioner/provisioner/access"
	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// putNewAdmin makes the class name another user in another secret. The old ones stay as
// they are.
func (f *fixture) putNewAdmin(t *testing.T) {
	t.Helper()
	f.putKey(t, "ceph", "new-admin", f.ceph.AddUser("new", rbdtest.Caps{AllPools: true}).Key)
	f.putClass(t, func(c *storagev1.StorageClass) {
		c.Parameters["adminId"] = "new"
		c.Parameters["adminSecretName"], c.Parameters["adminSecretNamespace"] = "new-admin", "ceph"
	})
}

// moveAway gives the volume an address that none of its monitors has any more.
func moveAway(pv *corev1.PersistentVolume, monitor string) {
	pv.Spec.RBD.CephMonitors = []string{monitor}
}

type deleteCase struct {
	name    string
	change  func(*testing.T, *fixture, *corev1.PersistentVolume)
	wantErr error
	want    []string
}

// TestDeleteThroughClass: the volume lacks something, or is out of date, but its class is
// right.
func TestDeleteThroughClass(t *testing.T) {
	for _, test := range []deleteCase{
		{name: "a volume of the retired provisioner", change: func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) { retire(pv) }},
		{name: "a class with faults in what deleting does not need", change: func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			retire(pv)
			f.putClass(t, func(c *storagev1.StorageClass) {
				delete(c.Parameters, "userSecretName")
				c.Parameters["imageFormat"], c.Parameters["fsType"], c.Parameters["colour"] = "1", "../x", "blue"
				c.Parameters["imageFeatures"], c.Parameters["dataPool"] = "journaling", "a b"
			})
		}},
		{name: "a class that has another pool by now", change: func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			retire(pv)
			f.putParameter(t, "pool", "another")
		}},
		{name: "a volume that names a user and no secret", change: func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
			retire(pv)
			pv.Annotations[volume.AnnDeletionUser] = "nobody"
		}},
		{name: "a volume that names a secret and no user", change: func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
			delete(pv.Annotations, volume.AnnDeletionUser)
		}},
		{name: "the volume's secret is gone", change: func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.putNewAdmin(t)
			f.dropSecret(t, "kube-system", "admin")
		}},
		{name: "the volume's secret may no longer be read", change: func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.putNewAdmin(t)
			f.refuse("secrets", "kube-system", "admin", forbidden("admin"))
		}},
		{name: "the volume's secret holds no key", change: func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.putNewAdmin(t)
			f.putSecret(t, "kube-system", "admin", access.TypeRBD, map[string]string{"key": "hunter2-hunter2-hunter2"})
		}},
		{name: "the volume's secret holds an old key", change: func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.putNewAdmin(t)
			f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true})
		}},
		{name: "the volume's user is gone", change: func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.putNewAdmin(t)
			f.ceph.RemoveUser("admin")
		}},
		{name: "the volume's monitors are dead", change: func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) { moveAway(pv, deadMonitor) }},
		{name: "the volume's monitors are dead and the class has names", change: func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, deadMonitor)
			f.names["mon.ceph"] = addresses("10.0.0.9", "10.0.0.2")
			f.putParameter(t, "monitors", "mon.ceph")
		}},
		{name: "the volume's monitors are dead and its secret is gone", change: func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, deadMonitor)
			f.putNewAdmin(t)
			f.dropSecret(t, "kube-system", "admin")
		}},
		{name: "the volume's monitors are dead and its key is old", change: func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, deadMonitor)
			f.putNewAdmin(t)
			f.ceph.AddUser("admin", rbdtest.Caps{AllPools: true})
		}},
		{name: "the volume's monitors are names that are gone", change: func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, "old-mon.ceph:6789")
		}},
		{name: "another cluster is at the volume's address and lets us in", change: func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, otherMonitor)
			f.putNewAdmin(t)
			f.putKey(t, "kube-system", "admin", f.other.AddUser("admin", rbdtest.Caps{AllPools: true}).Key)
			f.seed(t, f.other, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, testMarks())
		}},
		{name: "another cluster is at the volume's address and refuses us", change: func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, otherMonitor)
			f.seed(t, f.other, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, testMarks())
		}},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			f.restart(t) // no secret is remembered, as a second later
			test.change(t, f, pv)
			before, _ := f.other.Image(testPool, testImage)
			f.checkRemoved(t, pv)
			after, _ := f.other.Image(testPool, testImage)
			checkSame(t, "the image of that name in the other cluster", before, after)
		})
	}
}

// TestDeleteKeepsWithoutHelp: nothing leads to the image of the volume. One image too
// many is better than the removal of another owner's image.
func TestDeleteKeepsWithoutHelp(t *testing.T) {
	annotations := []string{volume.AnnDeletionUser, volume.AnnDeletionSecretName, volume.AnnDeletionSecretNamespace}
	// letIn makes the other cluster's key that of the volume's secret.
	letIn := func(t *testing.T, f *fixture) {
		f.putKey(t, "kube-system", "admin", f.other.AddUser("admin", rbdtest.Caps{AllPools: true}).Key)
	}
	for _, test := range []deleteCase{
		{"a volume of the retired provisioner whose class is gone", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			retire(pv)
			f.dropClass(t)
		}, nil, append([]string{`its StorageClass "fast" is gone`}, annotations...)},
		{"a volume of the retired provisioner whose class is another provisioner's", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			retire(pv)
			f.putClass(t, func(c *storagev1.StorageClass) { c.Provisioner = "rbd.csi.ceph.com" })
		}, nil, append([]string{`its StorageClass "fast" is now that of another provisioner`}, annotations...)},
		{"a volume of the retired provisioner whose class has lost its secret", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			retire(pv)
			f.putParameter(t, "adminSecretName", "")
		}, nil, append([]string{`parameter "adminSecretName" is missing`}, annotations...)},
		{"the secret of volume and class is gone", func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.dropSecret(t, "kube-system", "admin")
		}, access.ErrSecretNotFound, append([]string{`"kube-system/admin"`, "to name another user and secret in the volume, run: kubectl annotate --overwrite pv pvc-1234 "}, annotations...)},
		{"the volume's secret is gone, and so is the class", func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.dropClass(t)
			f.dropSecret(t, "kube-system", "admin")
		}, access.ErrSecretNotFound, []string{`"kube-system/admin"`}},
		{"the volume's secret is gone, and so is that of the class", func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.putNewAdmin(t)
			f.dropSecret(t, "kube-system", "admin")
			f.dropSecret(t, "ceph", "new-admin")
		}, access.ErrSecretNotFound, append([]string{`"ceph/new-admin"`, "to name another user and secret in the volume, run: kubectl annotate --overwrite pv pvc-1234 "}, annotations...)},
		{"its key is another user's", func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.putKey(t, "kube-system", "admin", f.ceph.AddUser("somebody-else", rbdtest.Caps{}).Key)
		}, rbd.ErrPermissionDenied, append([]string{"check that the user exists"}, annotations...)},
		{"its key is of a type that this program can't use", func(t *testing.T, f *fixture, _ *corev1.PersistentVolume) {
			f.putKey(t, "kube-system", "admin", rbdtest.NewKeyOfType(3, 64))
		}, rbd.ErrKeyType, append([]string{"can't use a key of this type: number 3: make a user of its own"}, annotations...)},
		{"its pool is gone", func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) { pv.Spec.RBD.RBDPool = "gone" },
			rbd.ErrPoolNotFound, []string{"if it is gone for good, so is the image", `-p '{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}' && kubectl delete pv pvc-1234`}},
		{"the volume's monitors are dead, and the class is gone", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, deadMonitor)
			f.dropClass(t)
		}, rbd.ErrUnreachable, []string{deadMonitor}},
		{"the volume's monitors are dead, and so are those of the class", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, deadMonitor)
			f.putParameter(t, "monitors", "10.0.0.8:6789")
		}, rbd.ErrUnreachable, nil},
		{"the volume's monitors are dead, and the class leads to another cluster", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, deadMonitor)
			f.putParameter(t, "monitors", otherMonitor)
			letIn(t, f)
			f.seed(t, f.other, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, testMarks())
		}, access.ErrOtherCluster, nil},
		{"another cluster is at the volume's address, and the class is gone", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, otherMonitor)
			f.dropClass(t)
			letIn(t, f)
			f.seed(t, f.other, testImage, rbd.ImageSpec{SizeBytes: 1 << 30}, testMarks())
		}, access.ErrOtherCluster, nil},
		{"another cluster is at the volume's address, and the class's is dead", func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
			moveAway(pv, otherMonitor)
			f.putParameter(t, "monitors", deadMonitor)
			letIn(t, f)
		}, rbd.ErrUnreachable, nil},
	} {
		inBubble(t, test.name, func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			f.restart(t) // no secret is remembered, as a second later
			test.change(t, f, pv)
			f.checkKept(t, pv, test.wantErr, test.want...)
		})
	}
}

// TestDeleteUnknownCluster: a volume does not name its cluster. Only a person can say
// whether the class's monitors lead to the right one.
func TestDeleteUnknownCluster(t *testing.T) {
	for name, change := range map[string]func(*corev1.PersistentVolume){
		"of the retired provisioner": retire,
		"with the deleting user":     func(pv *corev1.PersistentVolume) { delete(pv.Annotations, volume.AnnClusterFSID) },
	} {
		inBubble(t, name, func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			change(pv)
			moveAway(pv, deadMonitor)
			f.checkKept(t, pv, nil, volume.AnnClusterFSID, `what "ceph fsid" prints`)

			pv.Annotations[volume.AnnClusterFSID] = f.other.FSID()
			f.checkKept(t, pv, access.ErrOtherCluster)

			pv.Annotations[volume.AnnClusterFSID] = f.ceph.FSID()
			f.checkRemoved(t, pv)
		})
	}
}

// TestDeleteAnnotated: a volume of the retired provisioner whose class is gone, after a
// person did what its event says.
func TestDeleteAnnotated(t *testing.T) { synctest.Test(t, testDeleteAnnotated) }

func testDeleteAnnotated(t *testing.T) {
	f := newFixture(t)
	pv := f.released(t)
	retire(pv)
	f.dropClass(t)
	f.checkKept(t, pv, nil)
	pv.Annotations[volume.AnnDeletionUser] = "admin"
	pv.Annotations[volume.AnnDeletionSecretName] = "admin"
	pv.Annotations[volume.AnnDeletionSecretNamespace] = "kube-system"
	f.checkRemoved(t, pv)
}
