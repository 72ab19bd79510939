// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"ceph.com/rbd-provisioner/provisioner/volume"
)

// moving has a volume of the node plugin's driver, its claim, and two nodes without a kubelet:
// the test says what a kubelet would. kube-controller-manager is the real one.
type moving struct {
	*fixture
	pv    *corev1.PersistentVolume
	claim *corev1.PersistentVolumeClaim
	nodes [2]string
}

func newMoving(t *testing.T) *moving {
	t.Helper()
	m := &moving{fixture: newFixture(t)}
	m.nodes = [2]string{m.name + "-1", m.name + "-2"}
	client, ctx := rig.Kube.Client, t.Context()
	capacity := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	var err error
	m.pv, err = client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: m.name},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: capacity,
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef:                      &corev1.ObjectReference{Namespace: m.name, Name: "data"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: volume.CSIDriver, VolumeHandle: volume.CSIHandle(rig.Ceph.FSID, m.name, "image"),
			}},
		},
	}, metav1.CreateOptions{})
	m.must(err)
	m.claim = m.fixture.claim("data", &storagev1.StorageClass{}, func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = m.pv.Name })
	m.bound(m.claim)
	for _, name := range m.nodes {
		_, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{
			// kubelet sets it to have kube-controller-manager attach volumes.
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"}},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
		}, metav1.CreateOptions{})
		m.must(err)
		_, err = client.StorageV1().CSINodes().Create(ctx, &storagev1.CSINode{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: volume.CSIDriver, NodeID: name}}},
		}, metav1.CreateOptions{})
		m.must(err)
	}
	t.Cleanup(m.remove)
	return m
}

// remove removes what would keep the claim, and what has no namespace.
func (m *moving) remove() {
	ctx := context.WithoutCancel(m.Context())
	client := rig.Kube.Client
	now := metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}
	err := client.CoreV1().Pods(m.name).DeleteCollection(ctx, now, metav1.ListOptions{})
	for _, name := range m.nodes {
		err = errors.Join(err, client.CoreV1().Nodes().Delete(ctx, name, now), client.StorageV1().CSINodes().Delete(ctx, name, now))
	}
	attachments, listing := m.attachments(ctx)
	err = errors.Join(err, listing)
	for _, a := range attachments {
		if gone := client.StorageV1().VolumeAttachments().Delete(ctx, a.Name, now); !apierrors.IsNotFound(gone) {
			err = errors.Join(err, gone)
		}
	}
	if err := errors.Join(err, client.CoreV1().PersistentVolumes().Delete(ctx, m.pv.Name, now)); err != nil {
		m.Errorf("clean up: %v", err)
	}
}

// attachments returns the VolumeAttachments of the volume.
func (m *moving) attachments(ctx context.Context) ([]storagev1.VolumeAttachment, error) {
	list, err := rig.Kube.Client.StorageV1().VolumeAttachments().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.Items, func(a storagev1.VolumeAttachment) bool {
		return ptr.Deref(a.Spec.Source.PersistentVolumeName, "") != m.pv.Name
	}), nil
}

// attachedTo waits until the volume is attached to a node, and to no other one, and until
// kube-controller-manager tells the node so, which is what its kubelet waits for.
func (m *moving) attachedTo(node string) {
	m.Helper()
	m.eventually(func(ctx context.Context) error {
		attachments, err := m.attachments(ctx)
		if err != nil {
			return err
		}
		if len(attachments) != 1 || attachments[0].Spec.NodeName != node || !attachments[0].Status.Attached {
			var there []string
			for _, a := range attachments {
				there = append(there, fmt.Sprintf("%s (attached: %v)", a.Spec.NodeName, a.Status.Attached))
			}
			return fmt.Errorf("the volume is to be attached to %s, and is to %q", node, there)
		}
		live, err := rig.Kube.Client.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
		if err == nil && len(live.Status.VolumesAttached) != 1 {
			err = fmt.Errorf("node %s has the volumes %v", node, live.Status.VolumesAttached)
		}
		return err
	})
}

// pod makes a Pod on a node that uses the volume.
func (m *moving) pod(node string) *corev1.Pod {
	m.Helper()
	m.eventually(func(ctx context.Context) error {
		_, err := rig.Kube.Client.CoreV1().ServiceAccounts(m.name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	pod, err := rig.Kube.Client.CoreV1().Pods(m.name).Create(m.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: node},
		Spec: corev1.PodSpec{
			NodeName:   node,
			Containers: []corev1.Container{{Name: "c", Image: "none", VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: m.claim.Name},
			}}},
		},
	}, metav1.CreateOptions{})
	m.must(err)
	return pod
}

// status patches a node's status, as its kubelet or the controller of nodes does.
func (m *moving) status(node, patch string) {
	m.Helper()
	_, err := rig.Kube.Client.CoreV1().Nodes().Patch(m.Context(), node, types.StrategicMergePatchType, []byte(`{"status":`+patch+`}`), metav1.PatchOptions{}, "status")
	m.must(err)
}

// mounted has a node say that it uses the volume.
func (m *moving) mounted(node string) {
	m.Helper()
	m.status(node, fmt.Sprintf(`{"volumesInUse":["kubernetes.io/csi/%s^%s"]}`, volume.CSIDriver, m.pv.Spec.CSI.VolumeHandle))
}

// refused waits until a Pod on a second node is told that it can't have the volume, and checks
// that the first one still has it alone.
func (m *moving) refused(pod *corev1.Pod) {
	m.Helper()
	m.event(pod, "Multi-Attach error for volume")
	if events := m.events(m.Context(), pod.UID); !strings.Contains(events, "FailedAttachVolume") {
		m.Error(events)
	}
	m.attachedTo(m.nodes[0])
}

// A volume that one Pod writes to, no Pod on another node gets.
func TestNeverTwoNodes(t *testing.T) {
	t.Parallel()
	t.Run("the first Pod ends", func(t *testing.T) {
		t.Parallel()
		m := newMoving(t)
		first := m.pod(m.nodes[0])
		m.attachedTo(m.nodes[0])
		m.mounted(m.nodes[0])
		m.refused(m.pod(m.nodes[1]))
		m.must(rig.Kube.Client.CoreV1().Pods(m.name).Delete(t.Context(), first.Name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}))
		m.status(m.nodes[0], `{"volumesInUse":null}`)
		m.attachedTo(m.nodes[1])
	})
	// Whoever says that a node is out of service says that nothing runs there any more. Without
	// that, its volumes stay for six minutes after its Pods were removed by force.
	t.Run("the first node is out of service", func(t *testing.T) {
		t.Parallel()
		m := newMoving(t)
		m.pod(m.nodes[0])
		m.attachedTo(m.nodes[0])
		m.mounted(m.nodes[0])
		m.status(m.nodes[0], `{"conditions":[{"type":"Ready","status":"Unknown"}]}`)
		m.refused(m.pod(m.nodes[1]))
		_, err := rig.Kube.Kubectl(t.Context(), "", "taint", "nodes", m.nodes[0], "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
		m.must(err)
		m.attachedTo(m.nodes[1])
	})
}

// VolumeAttachments of our driver become attached and go when they are deleted; those of
// another driver are left to it.
func TestAttachment(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	client := rig.Kube.Client.StorageV1().VolumeAttachments()
	attach := func(suffix, driver string) *storagev1.VolumeAttachment {
		a, err := client.Create(t.Context(), &storagev1.VolumeAttachment{
			ObjectMeta: metav1.ObjectMeta{Name: f.name + "-" + suffix},
			Spec: storagev1.VolumeAttachmentSpec{
				Attacher: driver, NodeName: f.name,
				Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To(f.name)},
			},
		}, metav1.CreateOptions{})
		f.must(err)
		return a
	}
	theirs := attach("theirs", "other.example.com")
	for _, name := range []string{"first", "second"} {
		ours := attach("ours", volume.CSIDriver)
		f.eventually(func(ctx context.Context) error {
			live, err := client.Get(ctx, ours.Name, metav1.GetOptions{})
			if err == nil && !live.Status.Attached {
				err = fmt.Errorf("the %s is not attached: %+v", name, live.Status)
			}
			return err
		})
		f.must(client.Delete(t.Context(), ours.Name, metav1.DeleteOptions{}))
		if _, err := client.Get(t.Context(), ours.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the deleted one: got error %v, want that it is gone", err)
		}
	}
	live, err := client.Get(t.Context(), theirs.Name, metav1.GetOptions{})
	f.must(err)
	if live.Status.Attached || live.ResourceVersion != theirs.ResourceVersion {
		t.Errorf("it changed another driver's: %+v", live)
	}
	f.must(client.Delete(t.Context(), theirs.Name, metav1.DeleteOptions{}))
}
