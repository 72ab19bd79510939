// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// formerCluster is the annotation by which a person hands an image over to a volume.
	formerCluster = "rbd.ceph.com/former-cluster"
	// ownCluster is both the annotation of a volume whose image is marked, and the mark.
	ownCluster = "rbd.ceph.com/kubernetes-cluster"
)

// backup is what a backup tool keeps of a claim and its volume.
type backup struct {
	pv    *corev1.PersistentVolume
	claim *corev1.PersistentVolumeClaim
}

// backup reads a claim and its volume once they are bound, and removes what is useful in
// their own cluster only, as those tools do.
func (f *fixture) backup(claim *corev1.PersistentVolumeClaim) backup {
	f.Helper()
	pv := f.bound(claim)
	claim, err := f.kube.Client.CoreV1().PersistentVolumeClaims(f.namespaceOf(claim)).Get(f.ctx(), claim.Name, metav1.GetOptions{})
	f.must(err)
	for _, meta := range []*metav1.ObjectMeta{&pv.ObjectMeta, &claim.ObjectMeta} {
		meta.UID, meta.ResourceVersion, meta.CreationTimestamp = "", "", metav1.Time{}
		meta.ManagedFields, meta.Finalizers = nil, nil
	}
	pv.Spec.ClaimRef.UID, pv.Spec.ClaimRef.ResourceVersion = "", ""
	// With these, Kubernetes would expect the volume to name the claim's UID, and set the
	// claim's phase to Lost.
	delete(claim.Annotations, "pv.kubernetes.io/bind-completed")
	delete(claim.Annotations, "pv.kubernetes.io/bound-by-controller")
	pv.Status, claim.Status = corev1.PersistentVolumeStatus{}, corev1.PersistentVolumeClaimStatus{}
	return backup{pv: pv, claim: claim}
}

// renamed returns the backup as tools change it that restore into other namespaces and
// rename volumes.
func (b backup) renamed() backup {
	pv, claim := b.pv.DeepCopy(), b.claim.DeepCopy()
	pv.Name += "-moved"
	claim.Namespace, claim.Name = claim.Namespace+"-moved", claim.Name+"-moved"
	pv.Spec.ClaimRef.Namespace, pv.Spec.ClaimRef.Name = claim.Namespace, claim.Name
	claim.Spec.VolumeName = pv.Name
	return backup{pv: pv, claim: claim}
}

// restore makes a volume and its claim from a backup.
func (f *fixture) restore(b backup) (*corev1.PersistentVolume, *corev1.PersistentVolumeClaim) {
	f.Helper()
	_, err := f.kube.Client.CoreV1().Namespaces().Create(f.ctx(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: b.claim.Namespace},
	}, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		f.must(err)
	}
	_, err = f.kube.Client.CoreV1().PersistentVolumes().Create(f.ctx(), b.pv, metav1.CreateOptions{})
	f.must(err)
	claim, err := f.kube.Client.CoreV1().PersistentVolumeClaims(b.claim.Namespace).Create(f.ctx(), b.claim, metav1.CreateOptions{})
	f.must(err)
	pv := f.bound(claim)
	if pv.Name != b.pv.Name {
		f.Fatalf("the claim has volume %s, want %s", pv.Name, b.pv.Name)
	}
	return pv, claim
}

// uid returns the UID by which images name the cluster that they belong to.
func (f *fixture) uid() string {
	f.Helper()
	system, err := f.kube.Client.CoreV1().Namespaces().Get(f.ctx(), metav1.NamespaceSystem, metav1.GetOptions{})
	f.must(err)
	return string(system.UID)
}

// told waits for an event about an object with that reason and all of the texts that came
// at least times times, and returns how often it came.
func (f *fixture) told(object metav1.Object, reason string, times int32, texts ...string) (count int32) {
	f.Helper()
	f.eventually(func(ctx context.Context) error {
		events, err := f.eventsOf(ctx, object.GetUID())
		if err != nil {
			return err
		}
	events:
		for _, e := range events {
			if e.Reason != reason || e.Count < times {
				continue
			}
			for _, text := range texts {
				if !strings.Contains(e.Message, text) {
					continue events
				}
			}
			count = e.Count
			return nil
		}
		return fmt.Errorf("%s: no event %s says %q %d times: %s", object.GetName(), reason, texts, times, f.events(ctx, object.GetUID()))
	})
	return count
}

// handOver writes into a volume which cluster its image belonged to.
func (f *fixture) handOver(pv *corev1.PersistentVolume, former string) {
	f.Helper()
	f.patch(pv, fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, formerCluster, former))
}

// giveUp removes a volume but not its image, as the event advises for one that has not
// moved for good.
func (f *fixture) giveUp(volumes ...*corev1.PersistentVolume) {
	f.Helper()
	for _, pv := range volumes {
		f.patch(pv, `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`)
		f.must(f.kube.Client.CoreV1().PersistentVolumes().Delete(f.ctx(), pv.Name, metav1.DeleteOptions{}))
	}
	for _, pv := range volumes {
		f.gone(pv)
	}
}

func (f *fixture) patch(pv *corev1.PersistentVolume, patch string) {
	f.Helper()
	_, err := f.kube.Client.CoreV1().PersistentVolumes().Patch(f.ctx(), pv.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	f.must(err)
}

// ask raises what a claim requests to 32Mi.
func (f *fixture) ask(claim *corev1.PersistentVolumeClaim) {
	f.Helper()
	_, err := f.kube.Client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(f.ctx(), claim.Name, types.MergePatchType,
		[]byte(`{"spec":{"resources":{"requests":{"storage":"32Mi"}}}}`), metav1.PatchOptions{})
	f.must(err)
}

// grown waits until a volume has 32Mi, and checks that its image has.
func (f *fixture) grown(pv *corev1.PersistentVolume) {
	f.Helper()
	want := resource.MustParse("32Mi")
	f.eventually(func(ctx context.Context) error {
		live, err := f.kube.Client.CoreV1().PersistentVolumes().Get(ctx, pv.Name, metav1.GetOptions{})
		if err == nil && live.Spec.Capacity.Storage().Cmp(want) != 0 {
			err = fmt.Errorf("volume %s has %s, want %s; %s", pv.Name, live.Spec.Capacity.Storage(), &want, f.events(ctx, live.Spec.ClaimRef.UID))
		}
		return err
	})
	var info struct{ Size int64 }
	f.must(f.ceph.JSON(f.ctx(), &info, "rbd", "info", f.name+"/"+pv.Spec.RBD.RBDImage))
	if info.Size != want.Value() {
		f.Errorf("the image has %d bytes, want %d", info.Size, want.Value())
	}
}

// marks is the metadata of an image.
func (f *fixture) marks(image string) map[string]string {
	f.Helper()
	var marks map[string]string
	f.must(f.ceph.JSON(f.ctx(), &marks, "rbd", "image-meta", "list", f.name+"/"+image))
	return marks
}

// write writes data into the image of a volume, which must then survive. It is not one of
// the fixture's survivors, since it is deleted before the test ends.
func (f *fixture) write(pv *corev1.PersistentVolume) survivor {
	f.Helper()
	image := pv.Spec.RBD.RBDImage
	f.rbd("bench", "--io-type", "write", "--io-size", "64K", "--io-total", "256K", image)
	return survivor{image: image, state: f.state(image), pv: pv}
}

// survived checks that an image is unchanged, and its volume bound.
func (f *fixture) survived(s survivor) {
	f.Helper()
	sub := *f
	sub.kept = []survivor{s}
	sub.untouched()
	live, err := f.kube.Client.CoreV1().PersistentVolumes().Get(f.ctx(), s.pv.Name, metav1.GetOptions{})
	f.must(err)
	if live.Status.Phase != corev1.VolumeBound {
		f.Errorf("volume %s is %s, want it to be bound", live.Name, live.Status.Phase)
	}
}
