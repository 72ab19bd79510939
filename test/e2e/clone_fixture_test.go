// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	encoding "encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const claimKind = "PersistentVolumeClaim"

// sized changes what a claim requests.
func sized(size string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
	}
}

// from makes a claim ask for the content of another one.
func from(source string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: claimKind, Name: source}
	}
}

// fromRef does the same with dataSourceRef.
func fromRef(source string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSourceRef = &corev1.TypedObjectReference{Kind: claimKind, Name: source}
	}
}

// small makes a claim of 16Mi, small enough to compare all of its content.
func (f *fixture) small(name string, class *storagev1.StorageClass, changes ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	f.Helper()
	return f.claim(name, class, func(c *corev1.PersistentVolumeClaim) {
		for _, change := range slices.Concat([]func(*corev1.PersistentVolumeClaim){sized("16Mi")}, changes) {
			change(c)
		}
	})
}

// source makes a claim like small, with a volume and data.
func (f *fixture) source(name string, class *storagev1.StorageClass, changes ...func(*corev1.PersistentVolumeClaim)) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	f.Helper()
	claim := f.small(name, class, changes...)
	pv := f.bound(claim)
	f.scribble(pv.Spec.RBD.RBDImage)
	return claim, pv
}

// scribble writes random bytes to two places of an image, in different objects, and
// leaves the rest as it is.
func (f *fixture) scribble(image string) {
	f.Helper()
	for _, at := range []uint64{0, 9<<20 + 512} {
		data := make([]byte, 8<<10)
		_, _ = rand.Read(data) // never fails
		f.write(image, at, data)
	}
}

// write writes bytes into an image through librbd, as the difference between two states
// of the image.
func (f *fixture) write(image string, at uint64, data []byte) {
	f.Helper()
	diff := []byte("rbd diff v1\nw")
	diff = encoding.LittleEndian.AppendUint64(diff, at)
	diff = encoding.LittleEndian.AppendUint64(diff, uint64(len(data)))
	diff = append(append(diff, data...), 'e')
	path := filepath.Join(f.TempDir(), "diff")
	f.must(os.WriteFile(path, diff, 0o600))
	f.rbd("import-diff", "--no-progress", path, image)
}

// read returns the whole content of an image.
func (f *fixture) read(image string) []byte {
	f.Helper()
	return []byte(f.rbd("export", "--no-progress", image, "-"))
}

// same compares the contents of images.
func (f *fixture) same(what string, want, got []byte) {
	f.Helper()
	if bytes.Equal(want, got) {
		return
	}
	at := 0
	for at < min(len(want), len(got)) && want[at] == got[at] {
		at++
	}
	f.Errorf("%s: %d bytes and %d bytes, which differ from byte %d on", what, len(want), len(got), at)
}

// lineage is what an image says about its features and about its parent.
type lineage struct {
	Size       int64    `json:"size"`
	Features   []string `json:"features"`
	OpFeatures []string `json:"op_features"`
	DataPool   string   `json:"data_pool"`
	Parent     struct {
		Image string `json:"image"`
		Trash bool   `json:"trash"`
	} `json:"parent"`
}

func (f *fixture) lineage(image string) lineage {
	f.Helper()
	var l lineage
	f.must(rig.Ceph.JSON(f.Context(), &l, "rbd", "info", f.name+"/"+image))
	slices.Sort(l.Features)
	return l
}

// checkClone checks that a volume is a clone of another one and has a size, and what Ceph
// and the claim say about it.
func (f *fixture) checkClone(claim *corev1.PersistentVolumeClaim, pv, source *corev1.PersistentVolume, size string) {
	f.Helper()
	want := resource.MustParse(size)
	l := f.lineage(pv.Spec.RBD.RBDImage)
	if l.Size != want.Value() || l.Parent.Image != source.Spec.RBD.RBDImage || l.Parent.Trash {
		f.Errorf("the image is %+v, want %s and the parent %s", l, size, source.Spec.RBD.RBDImage)
	}
	features := []string{"layering", "operations"}
	if l.DataPool != "" {
		features = []string{"data-pool", "layering", "operations"}
	}
	if !slices.Equal(l.Features, features) || !slices.Equal(l.OpFeatures, []string{"clone-child"}) {
		f.Errorf("the image has the features %v and %v", l.Features, l.OpFeatures)
	}
	if has := pv.Spec.Capacity.Storage(); has.Cmp(want) != 0 {
		f.Errorf("the volume has %s, want %s", has, size)
	}
	f.eventually(func(ctx context.Context) error {
		live, err := f.live(ctx, claim)
		if err == nil && live.Status.Capacity.Storage().Cmp(want) != 0 {
			err = fmt.Errorf("the claim has %s, want %s", live.Status.Capacity.Storage(), size)
		}
		return err
	})
	f.checkMarks(claim, pv)
}

// checkMarks checks that an image's metadata name its own owner, and not its source's.
func (f *fixture) checkMarks(claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
	f.Helper()
	has := f.metadata(pv.Spec.RBD.RBDImage)
	for key, want := range map[string]string{
		"kubernetes.io/created-for/pvc/name":      claim.Name,
		"kubernetes.io/created-for/pvc/namespace": claim.Namespace,
		"kubernetes.io/created-for/pv/name":       pv.Name,
		kubernetesCluster:                         f.clusterUID(),
	} {
		if has[key] != want {
			f.Errorf("the image's metadata %s is %q, want %q", key, has[key], want)
		}
	}
}

// snapshots returns the names of an image's snapshots, and how many more are kept for
// clones.
func (f *fixture) snapshots(image string) (names []string, kept int) {
	f.Helper()
	var list []struct {
		Name      string `json:"name"`
		Namespace struct {
			Type string `json:"type"`
		} `json:"namespace"`
	}
	f.must(rig.Ceph.JSON(f.Context(), &list, "rbd", "snap", "ls", "--all", f.name+"/"+image))
	for _, s := range list {
		if s.Namespace.Type == "trash" {
			kept++
		} else {
			names = append(names, s.Name)
		}
	}
	return names, kept
}

// nothingLeft waits until no volume is left, and nothing of one in the pool: no image,
// neither in the trash, no object of one, and no note.
func (f *fixture) nothingLeft() {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		volumes, err := f.volumes(ctx, f.name)
		if err != nil {
			return err
		}
		if len(volumes) > 0 {
			return fmt.Errorf("%d volumes are left", len(volumes))
		}
		objects, err := rig.Ceph.Run(ctx, "rados", "--pool", f.name, "ls")
		if err != nil {
			return err
		}
		for _, object := range strings.Fields(objects) {
			switch kind, _, _ := strings.Cut(object, "."); kind {
			case "rbd_directory", "rbd_info":
			case "rbd_children", "rbd_trash", "rbd_provisioner":
				keys, err := rig.Ceph.Run(ctx, "rados", "--pool", f.name, "listomapkeys", object)
				if err == nil && keys != "" {
					err = fmt.Errorf("in %s is %q", object, keys)
				}
				if err != nil {
					return err
				}
			default:
				return fmt.Errorf("in the pool is %s", object)
			}
		}
		return nil
	})
}
