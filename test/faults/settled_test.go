// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// survivor is an image that no fault may touch, and the volume that names it, if any.
type survivor struct {
	image, state string
	pv           *corev1.PersistentVolume
}

// makeSurvivors makes a volume with policy Delete and data, which a claim uses; one with
// policy Retain that a claim uses and one that is released; and an image without an owner
// that is named like a claim's.
func (f *fixture) makeSurvivors() {
	f.Helper()
	var volumes []*corev1.PersistentVolume
	for name, class := range map[string]string{
		withData: f.name, "retained": f.name + "-retain", "released": f.name + "-retain",
	} {
		claim, err := f.request(f.ctx(), class, name)
		f.must(err)
		pv := f.bound(claim)
		if name == withData {
			f.rbd("bench", "--io-type", "write", "--io-size", "64K", "--io-total", "2M", pv.Spec.RBD.RBDImage)
		}
		if name == "released" {
			f.delete(claim)
			f.released(pv)
		}
		volumes = append(volumes, pv)
	}
	foreign := imagePrefix + string(uuid.NewUUID())
	f.rbd("create", "--size", "16M", "--image-feature", "layering", foreign)
	f.kept = append(f.kept, survivor{image: foreign, state: f.state(foreign)})
	for _, pv := range volumes {
		f.kept = append(f.kept, survivor{image: pv.Spec.RBD.RBDImage, state: f.state(pv.Spec.RBD.RBDImage), pv: pv})
	}
}

// state returns all that there is to know about an image.
func (f *fixture) state(image string) string {
	f.Helper()
	content := sha256.Sum256([]byte(f.rbd("export", "--no-progress", image, "-")))
	var info []string
	for line := range strings.Lines(f.rbd("info", image)) {
		if !strings.Contains(line, "access_timestamp") { // we are looking at it
			info = append(info, line)
		}
	}
	return fmt.Sprintf("%s\n%s\n%x", strings.Join(info, ""), f.rbd("image-meta", "list", image), content)
}

// untouched checks that the survivors are unchanged.
func (f *fixture) untouched() {
	f.Helper()
	for _, s := range f.kept {
		if diff := cmp.Diff(s.state, f.state(s.image)); diff != "" {
			f.Errorf("image %s was touched (-want +got):\n%s", s.image, diff)
		}
		if s.pv == nil {
			continue
		}
		live, err := f.kube.Client.CoreV1().PersistentVolumes().Get(f.ctx(), s.pv.Name, metav1.GetOptions{})
		if err != nil {
			f.Error(err)
		} else if live.DeletionTimestamp != nil || live.Spec.RBD == nil || live.Spec.RBD.RBDImage != s.image {
			f.Errorf("volume %s was touched: %v", s.pv.Name, live)
		}
	}
}

// settled waits until no work is left, and all is whole.
func (f *fixture) settled() {
	f.Helper()
	f.eventually(f.whole)
}

// whole returns nil when each claim has one volume, each volume has an image, each image
// of the pool has a volume or is a survivor, and neither the trash nor the pool's objects
// hold anything else. If clones were made, snapshots and notes must not either.
func (f *fixture) whole(ctx context.Context) error {
	images, err := f.named(ctx)
	if err != nil {
		return err
	}
	if f.neighbour != nil {
		more, err := f.neighbour.named(ctx)
		if err != nil {
			return err
		}
		images = append(images, more...)
	}
	for _, s := range f.kept {
		if s.pv == nil {
			images = append(images, s.image)
		}
	}
	slices.Sort(images)
	live, err := f.ceph.Images(ctx, f.name)
	if err != nil {
		return err
	}
	slices.Sort(live)
	if diff := cmp.Diff(images, live); diff != "" {
		return fmt.Errorf("images in the pool (-named by volumes +there):\n%s", diff)
	}
	trash, err := f.ceph.Trash(ctx, f.name)
	if err != nil {
		return err
	}
	if len(trash) > 0 {
		return fmt.Errorf("in the trash are %v", trash)
	}
	if err := f.noRemains(ctx, images); err != nil || !f.cloning {
		return err
	}
	return f.noCloneRemains(ctx, images)
}

// named lists the images that this cluster's volumes name. It is an error if a claim has
// no volume, if two volumes name one claim or one image, or if a volume waits for its
// deletion.
func (f *fixture) named(ctx context.Context) ([]string, error) {
	claims, err := f.kube.Client.CoreV1().PersistentVolumeClaims(f.name).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	volumes, err := f.kube.Client.CoreV1().PersistentVolumes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var images []string
	owners := map[types.UID]string{}
	for _, pv := range volumes.Items {
		if pv.Spec.RBD == nil || pv.Spec.RBD.RBDPool != f.name {
			continue
		}
		claim, retained := pv.Spec.ClaimRef.UID, pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRetain
		switch {
		case owners[claim] != "":
			return nil, fmt.Errorf("volumes %s and %s are of one claim", owners[claim], pv.Name)
		case slices.Contains(images, pv.Spec.RBD.RBDImage):
			return nil, fmt.Errorf("image %s has two volumes", pv.Spec.RBD.RBDImage)
		case pv.Status.Phase != corev1.VolumeBound && !retained:
			return nil, fmt.Errorf("volume %s is %s; %s", pv.Name, pv.Status.Phase, f.events(ctx, pv.UID))
		}
		owners[claim] = pv.Name
		images = append(images, pv.Spec.RBD.RBDImage)
	}
	for _, c := range claims.Items {
		if c.Status.Phase != corev1.ClaimBound || owners[c.UID] != c.Spec.VolumeName || c.DeletionTimestamp != nil {
			return nil, fmt.Errorf("claim %s is %s, has volume %q, and volume %q names it; %s",
				c.Name, c.Status.Phase, c.Spec.VolumeName, owners[c.UID], f.events(ctx, c.UID))
		}
	}
	return images, nil
}

// noRemains looks below the images, at the objects that librbd makes for them.
func (f *fixture) noRemains(ctx context.Context, images []string) error {
	objects, err := f.ceph.Run(ctx, "rados", "--pool", f.name, "ls")
	if err != nil {
		return err
	}
	keys, err := f.ceph.Run(ctx, "rados", "--pool", f.name, "listomapkeys", "rbd_directory")
	if err != nil {
		return err
	}
	headers := map[string]bool{} // of these ids
	var data, ids, names []string
	for _, object := range strings.Fields(objects) {
		kind, rest, _ := strings.Cut(object, ".")
		switch kind {
		case "rbd_id":
			names = append(names, rest)
		case "rbd_header":
			headers[rest] = true
		case "rbd_data":
			id, _, _ := strings.Cut(rest, ".")
			data = append(data, id)
		}
	}
	slices.Sort(names)
	var errs []error
	if diff := cmp.Diff(images, names); diff != "" {
		errs = append(errs, fmt.Errorf("objects rbd_id.… (-images +objects):\n%s", diff))
	}
	names = nil
	for _, key := range strings.Fields(keys) {
		if name, found := strings.CutPrefix(key, "name_"); found {
			names = append(names, name)
		} else if id, found := strings.CutPrefix(key, "id_"); found {
			ids = append(ids, id)
		}
	}
	slices.Sort(names)
	if diff := cmp.Diff(images, names); diff != "" {
		errs = append(errs, fmt.Errorf("names in rbd_directory (-images +names):\n%s", diff))
	}
	if len(headers) != len(images) || len(ids) != len(images) {
		errs = append(errs, fmt.Errorf("%d images have %d headers and %d ids in rbd_directory", len(images), len(headers), len(ids)))
	}
	for _, id := range slices.Concat(data, ids) {
		if !headers[id] {
			errs = append(errs, fmt.Errorf("of %s there is no header", id))
		}
	}
	return errors.Join(errs...)
}

// end checks that all settles, first with its claims and then without them; and that when
// no replica works any more, all is whole and the survivors are unchanged.
func (f *fixture) end() {
	if f.Failed() {
		return // the rig is not used again
	}
	f.settled()
	f.deleteOwnClaims()
	f.settled()
	f.untouched()
	f.leave()
	// Images that were still being made when the provisioner was stopped.
	f.must(f.whole(f.ctx()))
	f.untouched()
	f.forget()
}

// deleteOwnClaims deletes all claims but the survivors'.
func (f *fixture) deleteOwnClaims() {
	list, err := f.kube.Client.CoreV1().PersistentVolumeClaims(f.name).List(f.ctx(), metav1.ListOptions{})
	f.must(err)
	var own []*corev1.PersistentVolumeClaim
	for _, claim := range list.Items {
		if !slices.ContainsFunc(f.kept, func(s survivor) bool { return s.pv != nil && s.pv.Name == claim.Spec.VolumeName }) {
			own = append(own, &claim)
		}
	}
	f.delete(own...)
}

// leave stops the provisioner, which gives the lease back.
func (f *fixture) leave() { f.must(f.p.Stop()) }

// forget makes room for the next test on this rig.
func (f *fixture) forget() {
	var errs []error
	for _, s := range f.kept {
		if s.pv != nil {
			client := f.kube.Client.CoreV1().PersistentVolumes()
			_, err := client.Patch(f.ctx(), s.pv.Name, types.MergePatchType,
				[]byte(`{"metadata":{"finalizers":null},"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`), metav1.PatchOptions{})
			errs = append(errs, err)
			if err := client.Delete(f.ctx(), s.pv.Name, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
	}
	errs = append(errs,
		f.kube.Client.CoreV1().Namespaces().Delete(f.ctx(), f.name, metav1.DeleteOptions{}),
		f.ceph.DeletePool(f.ctx(), f.name))
	f.must(errors.Join(errs...))
}
