// SPDX-License-Identifier: Apache-2.0

package provisioner_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"ceph.com/rbd-provisioner/provisioner/volume"
	"ceph.com/rbd-provisioner/provisioner/work"
)

const (
	libraryFinalizer = "external-provisioner.volume.kubernetes.io/finalizer"
	anotherFinalizer = "example.com/backup"
)

// TestRunByHand: a volume is being deleted, in each phase and with each policy. The
// finalizer goes where nobody else takes it off; an event tells that an image stays.
func TestRunByHand(t *testing.T) {
	const plain = `docs/trash.md; to remove it, once "rbd image-meta list rbd/` + testImage +
		`" shows that it is no other cluster's, run: rbd rm rbd/` + testImage
	for _, test := range []struct {
		phase  corev1.PersistentVolumePhase
		policy corev1.PersistentVolumeReclaimPolicy
		change func(*testing.T, *fixture, *corev1.PersistentVolume)
		letGo  bool
		want   string // the end of the event; empty for none
	}{
		{phase: "Pending", policy: "Delete", letGo: true, want: plain},
		{phase: "Available", policy: "Delete", letGo: true, want: plain},
		{phase: "Failed", policy: "Delete", letGo: true, want: plain},
		{phase: "Bound", policy: "Delete", want: plain}, // it goes only by force
		{phase: "Released", policy: "Delete"},
		// The library takes it off.
		{phase: "Available", policy: "Retain", want: plain},
		{phase: "Released", policy: "Retain", want: plain},
		{phase: "Failed", policy: "Recycle", want: plain},
		{phase: "Available", policy: "Delete", letGo: true, want: `its image was not removed: volume "second" names it, too`,
			change: func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
				second := pv.DeepCopy()
				second.Name, second.UID = "second", "uid-second"
				if err := f.volumes.Add(second); err != nil {
					t.Fatal(err)
				}
			}},
		{phase: "Pending", policy: "Delete", letGo: true, want: "its image was not removed: it is that of claim default/data, which still exists",
			change: func(t *testing.T, f *fixture, pv *corev1.PersistentVolume) {
				pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "data", UID: "uid-data"}
				claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "data", UID: "uid-data"}}
				if err := f.claims.Add(claim); err != nil {
					t.Fatal(err)
				}
			}},
		{phase: "Available", policy: "Delete",
			change: func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) { pv.DeletionTimestamp = nil }, want: plain},
		{phase: "Available", policy: "Delete",
			change: func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
				pv.Annotations[volume.AnnIdentity] = "other"
			}},
		{phase: "Available", policy: "Delete",
			change: func(_ *testing.T, _ *fixture, pv *corev1.PersistentVolume) {
				pv.Annotations[volume.AnnProvisionedBy] = "rbd.csi.ceph.com"
			}},
		{phase: "Available", policy: "Delete",
			change: func(_ *testing.T, f *fixture, _ *corev1.PersistentVolume) { f.leaseLost.Store(true) }},
	} {
		inBubble(t, fmt.Sprintf("%s, %s", test.phase, test.policy), func(t *testing.T) {
			f := newFixture(t)
			pv := f.released(t)
			pv.Annotations[volume.AnnProvisionedBy] = "ceph.com/rbd"
			pv.DeletionTimestamp = new(metav1.Now())
			pv.Finalizers = []string{libraryFinalizer, anotherFinalizer}
			pv.Status.Phase, pv.Spec.PersistentVolumeReclaimPolicy = test.phase, test.policy
			if test.change != nil {
				test.change(t, f, pv)
			}
			ctx := f.ctx
			volumes := f.client.CoreV1().PersistentVolumes()
			pv.ResourceVersion = "8"
			if _, err := volumes.Create(ctx, pv, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			finalizers := func() []string {
				live, err := volumes.Get(ctx, pv.Name, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				return live.Finalizers
			}
			both := slices.Clone(pv.Finalizers)
			older := pv.DeepCopy()
			older.ResourceVersion = "7"
			if err := f.volumes.Update(older); err != nil {
				t.Fatal(err)
			}
			f.Seen(nil, older)
			f.begin("by hand", f.RunByHand)
			synctest.Wait()
			checkSame(t, "the finalizers of a volume that has changed", both, finalizers())
			if err := f.volumes.Update(pv); err != nil {
				t.Fatal(err)
			}
			f.pass(t, work.RetryStart)
			want := both
			if test.letGo {
				want = []string{anotherFinalizer}
			}
			checkSame(t, "the finalizers", want, finalizers())

			if err := f.volumes.Delete(pv); err != nil {
				t.Fatal(err)
			}
			f.Gone(ctx, cache.DeletedFinalStateUnknown{Key: pv.Name, Obj: pv})
			checkSame(t, "the events about a tombstone", nil, f.sent(t))
			f.Gone(ctx, pv)
			sent := f.sent(t)
			begin := fmt.Sprintf("Normal ImageNotRemoved the volume was deleted while it was %s, with the policy %s, so its image was not removed: ", test.phase, test.policy)
			switch {
			case test.want == "" && len(sent) > 0, test.want != "" && len(sent) != 1:
				t.Errorf("got the events %q, want %q", sent, test.want)
			case test.want != "" && (!strings.HasPrefix(sent[0], begin) || !strings.HasSuffix(sent[0], test.want)):
				t.Errorf("got the event %q, want %q", sent[0], begin+"… "+test.want)
			}
			checkSame(t, "the images", []string{testImage}, f.ceph.Images(testPool))
		})
	}
}
