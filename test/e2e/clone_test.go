// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// live reads a claim again.
func (f *fixture) live(ctx context.Context, claim *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	return rig.Kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Get(ctx, claim.Name, metav1.GetOptions{})
}

// A clone has the bytes of its source. A later change of one of them does not change the
// other.
func TestClone(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	_, sourcePV := f.source("data", class)
	source := sourcePV.Spec.RBD.RBDImage
	before := f.read(source)
	for i, ask := range []func(string) func(*corev1.PersistentVolumeClaim){from, fromRef} {
		claim := f.small([]string{"source", "ref"}[i], class, ask("data"))
		pv := f.bound(claim)
		clone := pv.Spec.RBD.RBDImage
		f.checkClone(claim, pv, sourcePV, "16Mi")
		f.same("source and clone", before, f.read(clone))
		if names, kept := f.snapshots(source); len(names) > 0 || kept != i+1 {
			t.Errorf("the source has the snapshots %v, and %d that are kept for %d clones", names, kept, i+1)
		}

		f.scribble(clone)
		changed := f.read(clone)
		if slices.Equal(changed, before) {
			t.Fatal("the test changes nothing")
		}
		f.same("the source before and after the clone was changed", before, f.read(source))
		f.scribble(source)
		f.same("the clone before and after the source was changed", changed, f.read(clone))
		before = f.read(source)
	}
	if l := f.lineage(source); !slices.Equal(l.Features, []string{"layering", "operations"}) {
		t.Errorf("the source has the features %v", l.Features)
	}
}

// Clones that differ from their source, as far as they may.
func TestCloneOtherwise(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)

	t.Run("larger", func(t *testing.T) {
		t.Parallel()
		f := f.in(t)
		_, source := f.source("small", class, block)
		claim := f.small("large", class, from("small"), sized("40Mi"), block)
		pv := f.bound(claim)
		f.checkClone(claim, pv, source, "40Mi")
		// Behind the end of the source there is nothing.
		want := append(f.read(source.Spec.RBD.RBDImage), make([]byte, 24<<20)...)
		f.same("source and clone", want, f.read(pv.Spec.RBD.RBDImage))
	})
	t.Run("with a larger file system", func(t *testing.T) {
		t.Parallel()
		f := f.in(t)
		f.source("small-files", class)
		claim := f.small("large-files", class, from("small-files"), sized("40Mi"))
		pv := f.bound(claim)
		// kubelet would grow it, but there is none here: test/node has one.
		f.eventually(func(ctx context.Context) error {
			live, err := f.live(ctx, claim)
			if err != nil {
				return err
			}
			pending := slices.ContainsFunc(live.Status.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
				return c.Type == corev1.PersistentVolumeClaimFileSystemResizePending
			})
			if has := live.Status.Capacity.Storage().String(); has != "16Mi" || !pending {
				return fmt.Errorf("the claim has %s, and the conditions %v", has, live.Status.Conditions)
			}
			return nil
		})
		if has := pv.Spec.Capacity.Storage().String(); has != "40Mi" {
			t.Errorf("the volume has %s", has)
		}
	})
	t.Run("larger by the last MiB", func(t *testing.T) {
		t.Parallel()
		f := f.in(t)
		_, source := f.source("odd", class, sized("17M")) // 17 MiB, rounded up
		claim := f.small("odd-copy", class, from("odd"), sized("17M"))
		f.checkClone(claim, f.bound(claim), source, "17Mi")
	})
	t.Run("devices", func(t *testing.T) {
		t.Parallel()
		f := f.in(t)
		_, source := f.source("raw", class, block)
		claim := f.small("raw-copy", class, from("raw"), block)
		pv := f.bound(claim)
		f.checkClone(claim, pv, source, "16Mi")
		f.same("source and clone", f.read(source.Spec.RBD.RBDImage), f.read(pv.Spec.RBD.RBDImage))
		if *pv.Spec.VolumeMode != corev1.PersistentVolumeBlock || pv.Spec.RBD.FSType != "" || len(pv.Spec.MountOptions) > 0 {
			t.Errorf("the volume is %+v", pv.Spec)
		}
	})
	t.Run("of another class of the pool", func(t *testing.T) {
		t.Parallel()
		f := f.in(t)
		xfs := f.class("xfs", func(c *storagev1.StorageClass) {
			c.Parameters["fsType"] = "xfs"
			c.ReclaimPolicy = ptr.To(corev1.PersistentVolumeReclaimDelete)
		})
		_, source := f.source("xfs", xfs)
		claim := f.small("xfs-copy", class, from("xfs"))
		pv := f.bound(claim)
		f.checkClone(claim, pv, source, "16Mi")
		// The content decides the file system, which is the source's.
		if pv.Spec.RBD.FSType != "xfs" || !slices.Equal(pv.Spec.MountOptions, []string{"nouuid"}) || pv.Spec.StorageClassName != class.Name {
			t.Errorf("the volume has the file system %q, the mount options %v and the class %q",
				pv.Spec.RBD.FSType, pv.Spec.MountOptions, pv.Spec.StorageClassName)
		}
	})
	t.Run("of the retired provisioner", func(t *testing.T) {
		t.Parallel()
		f := f.in(t)
		old := f.retiredVolume(class, "old")
		source := f.bound(old)
		f.scribble(source.Spec.RBD.RBDImage)
		claim := f.claim("old-copy", class, from("old"))
		pv := f.bound(claim)
		f.checkClone(claim, pv, source, "1Gi")
		head := func(image string) string { return f.rbd("export-diff", "--no-progress", image, "-") }
		f.same("source and clone", []byte(head(source.Spec.RBD.RBDImage)), []byte(head(pv.Spec.RBD.RBDImage)))
		// Before the class, which says which user deletes the source.
		f.delete(old)
		f.volumeGone(source)
		f.delete(claim)
		f.gone(pv)
		f.gone(source)
	})
	t.Run("that grow", func(t *testing.T) {
		t.Parallel()
		f := f.in(t)
		f.allowExpansion(class)
		_, source := f.source("growing", class, block)
		claim := f.small("grown", class, from("growing"), block)
		pv := f.bound(claim)
		f.ask(claim, "24Mi")
		f.grown(claim, "24Mi")
		want := append(f.read(source.Spec.RBD.RBDImage), make([]byte, 8<<20)...)
		f.same("source and clone", want, f.read(pv.Spec.RBD.RBDImage))
	})
}

// The data of a clone is in the pool that its own class names, wherever the source's is.
func TestCloneDataPool(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	data := f.name + "-data"
	f.must(rig.Ceph.CreatePool(t.Context(), data))
	before, err := rig.Ceph.Run(t.Context(), "rados", "--pool", data, "ls") // as "rbd pool init" leaves it
	f.must(err)
	t.Cleanup(func() { f.must(rig.Ceph.DeletePool(context.WithoutCancel(t.Context()), data)) })
	f.cephUser("admin", f.name, data)
	f.cephUser("user", f.name, data)
	plain := f.class("plain", nil)
	apart := f.class("apart", func(c *storagev1.StorageClass) { c.Parameters["dataPool"] = data })
	for _, test := range []struct {
		name, want string
		of, class  *storagev1.StorageClass
	}{
		{"into", data, plain, apart},
		{"out-of", "", apart, plain},
		{"within", data, apart, apart},
	} {
		sourceClaim, source := f.source(test.name, test.of)
		claim := f.small(test.name+"-copy", test.class, from(test.name))
		pv := f.bound(claim)
		f.checkClone(claim, pv, source, "16Mi")
		if got := f.lineage(pv.Spec.RBD.RBDImage).DataPool; got != test.want {
			t.Errorf("%s: the clone has the data pool %q, want %q", test.name, got, test.want)
		}
		f.scribble(pv.Spec.RBD.RBDImage)
		f.delete(claim)
		f.delete(sourceClaim)
	}
	f.nothingLeft()
	if objects, err := rig.Ceph.Run(t.Context(), "rados", "--pool", data, "ls"); err != nil || objects != before {
		t.Errorf("in the data pool is %q, %v, want %q", objects, err, before)
	}
}

// A source can be deleted before its clones, and they before it. The clones keep their
// data; in the end nothing is left.
func TestCloneOrder(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", nil)
	sourceClaim, source := f.source("data", class)
	first, second, third := f.small("first", class, from("data")), f.small("second", class, from("data")), f.small("third", class, from("data"))
	firstPV, secondPV, thirdPV := f.bound(first), f.bound(second), f.bound(third)
	want := f.read(source.Spec.RBD.RBDImage)

	// A clone first: the source keeps its data.
	f.delete(third)
	f.gone(thirdPV)
	f.same("the source before and after a clone was deleted", want, f.read(source.Spec.RBD.RBDImage))

	f.delete(sourceClaim)
	f.volumeGone(source)
	f.trashed(source.Spec.RBD.RBDImage)
	parents := map[string]string{}
	for line := range strings.Lines(f.rbd("ls", "--long")) { // as docs/cloning.md says
		name, rest, _ := strings.Cut(line, " ")
		parents[name] = rest
	}
	for _, pv := range []*corev1.PersistentVolume{firstPV, secondPV} {
		if !strings.Contains(parents[pv.Spec.RBD.RBDImage], source.Spec.RBD.RBDImage) {
			t.Errorf("rbd ls --long does not name the parent of %s: %v", pv.Spec.RBD.RBDImage, parents)
		}
		if l := f.lineage(pv.Spec.RBD.RBDImage); l.Parent.Image != source.Spec.RBD.RBDImage || !l.Parent.Trash {
			t.Errorf("the clone is %+v, want a parent in the trash", l)
		}
		f.same("a clone whose source is deleted", want, f.read(pv.Spec.RBD.RBDImage))
	}

	// A clone of a clone, which remains without both.
	last := f.small("last", class, from("first"))
	lastPV := f.bound(last)
	f.delete(first)
	f.delete(second)
	f.volumeGone(firstPV)
	f.gone(secondPV)
	f.same("a clone of a clone", want, f.read(lastPV.Spec.RBD.RBDImage))
	f.trashed(source.Spec.RBD.RBDImage)
	f.delete(last)
	for _, pv := range []*corev1.PersistentVolume{lastPV, firstPV, source} {
		f.gone(pv)
	}
	f.nothingLeft()
}
