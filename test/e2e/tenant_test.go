// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/yaml"
)

// tenant is a user who may make claims in one namespace, and nothing else.
type tenant struct {
	*fixture
	kubeconfig string
}

// newTenant makes an account with a Role for claims in the fixture's namespace.
func newTenant(f *fixture) *tenant {
	f.Helper()
	ctx, meta := f.Context(), metav1.ObjectMeta{Namespace: f.name, Name: "tenant"}
	_, err := rig.Kube.Client.CoreV1().ServiceAccounts(f.name).Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta}, metav1.CreateOptions{})
	f.must(err)
	_, err = rig.Kube.Client.RbacV1().Roles(f.name).Create(ctx, &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{"persistentvolumeclaims"},
		Verbs: []string{"get", "list", "watch", "create", "update", "patch", "delete"},
	}}}, metav1.CreateOptions{})
	f.must(err)
	_, err = rig.Kube.Client.RbacV1().RoleBindings(f.name).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: f.name, Name: meta.Name}},
	}, metav1.CreateOptions{})
	f.must(err)
	t := &tenant{fixture: f}
	t.kubeconfig, err = rig.Kube.ServiceAccountKubeconfig(ctx, f.name, meta.Name)
	f.must(err)
	f.eventually(func(ctx context.Context) error {
		_, err := rig.Kube.KubectlAs(ctx, t.kubeconfig, "", "get", "pvc")
		return err
	})
	return t
}

// in returns the tenant for a subtest.
func (t *tenant) in(sub *testing.T) *tenant {
	return &tenant{fixture: t.fixture.in(sub), kubeconfig: t.kubeconfig}
}

// makes creates a claim as the tenant.
func (t *tenant) makes(name string, change func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	t.Helper()
	claim := &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Namespace: t.name, Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			StorageClassName: ptr.To(t.name + "-a"),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("1Gi"),
			}},
		},
	}
	change(claim)
	text, err := yaml.Marshal(claim)
	t.must(err)
	_, err = rig.Kube.KubectlAs(t.Context(), t.kubeconfig, string(text), "create", "-f", "-")
	t.must(err)
	claim, err = rig.Kube.Client.CoreV1().PersistentVolumeClaims(t.name).Get(t.Context(), name, metav1.GetOptions{})
	t.must(err)
	return claim
}

// A user who may make claims, but neither classes nor volumes, gets volumes of existing
// classes and reaches no image, pool or key of others.
func TestTenant(t *testing.T) {
	t.Parallel()
	theirs := newFixture(t)
	theirClass := theirs.class("a", nil)
	theirVolume := theirs.bound(theirs.claim("data", theirClass, nil))
	theirImage := theirVolume.Spec.RBD.RBDImage
	metadata := func() string {
		text, err := rig.Ceph.Run(t.Context(), "rbd", "image-meta", "list", theirs.name+"/"+theirImage)
		theirs.must(err)
		return text
	}
	before := metadata()

	f := newFixture(t)
	class := f.class("a", nil)
	foreign := f.class("foreign", func(c *storagev1.StorageClass) { c.Provisioner = "example.com/nobody" })
	mine := newTenant(f)

	t.Run("rights", func(t *testing.T) { mine.checkRights(t, theirs, theirVolume) })

	t.Run("annotations", func(t *testing.T) {
		f, mine := f.in(t), mine.in(t)
		hostile := map[string]string{
			"rbdProvisionerIdentity":                 "someone-else",
			"rbd.ceph.com/provisioner-deletion-user": theirs.name + "-admin",
			"rbd.ceph.com/cluster-fsid":              "00000000-0000-0000-0000-000000000000",
			kubernetesCluster:                        anotherCluster,
			formerCluster:                            anotherCluster,
			deletionBegun:                            "2006-01-02T15:04:05Z",
			"volume.kubernetes.io/provisioner-deletion-secret-name":      theirs.name + "-admin",
			"volume.kubernetes.io/provisioner-deletion-secret-namespace": namespace,
			"volume.kubernetes.io/selected-node":                         theirs.name,
			"pv.kubernetes.io/provisioned-by":                            "example.com/nobody",
			"kubernetes.io/created-for.pv.name":                          theirVolume.Name,
			"pool":                                                       theirs.name,
			"image":                                                      theirImage,
			"monitors":                                                   "127.0.0.1:1",
		}
		claim := mine.makes("annotated", func(c *corev1.PersistentVolumeClaim) {
			c.Annotations = maps.Clone(hostile)
			c.Labels = map[string]string{"pool": theirs.name, "image": theirImage}
		})
		mine.checkOwn(t, f, claim, f.bound(claim), class)
	})

	// Any claim may name any class: it gets a new volume that is as the class says.
	t.Run("two classes", func(t *testing.T) {
		f, mine := f.in(t), mine.in(t)
		claim := mine.makes("two", func(c *corev1.PersistentVolumeClaim) {
			c.Annotations = map[string]string{corev1.BetaStorageClassAnnotation: theirClass.Name}
		})
		mine.checkOwn(t, theirs, claim, f.bound(claim), theirClass)
	})

	t.Run("class of another provisioner", func(t *testing.T) {
		f, mine := f.in(t), mine.in(t)
		claim := mine.makes("thief", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = ptr.To(foreign.Name) })
		// Kubernetes' own controller replaces the annotation by the right name, so it may
		// take several attempts until ours has seen it.
		f.eventually(func(ctx context.Context) error {
			if _, err := rig.Kube.KubectlAs(ctx, mine.kubeconfig, "", "annotate", "--overwrite", "pvc", claim.Name,
				"volume.kubernetes.io/storage-provisioner=ceph.com/rbd", "volume.beta.kubernetes.io/storage-provisioner=ceph.com/rbd"); err != nil {
				return err
			}
			for line := range strings.Lines(log(t, rig.main)) {
				if strings.Contains(line, "Unknown provisioner requested") && strings.Contains(line, f.name+"/thief") {
					return nil
				}
			}
			return errors.New("the claim was not refused yet")
		})
		f.pending(claim)
	})

	t.Run("content of another namespace", func(t *testing.T) {
		f, mine := f.in(t), mine.in(t)
		claim := mine.makes("clone", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSourceRef = &corev1.TypedObjectReference{Kind: "PersistentVolumeClaim", Name: "data", Namespace: ptr.To(theirs.name)}
		})
		if claim.Spec.DataSourceRef == nil {
			// If the feature CrossNamespaceVolumeDataSource is off, the API server
			// removes such a reference: an ordinary claim is left.
			mine.checkOwn(t, f, claim, f.bound(claim), class)
			return
		}
		f.event(claim, fmt.Sprintf("the claim asks for the content of a claim in namespace %q (spec.dataSourceRef): "+
			"only claims of its own namespace can be cloned", theirs.name))
		f.pending(claim)
	})

	t.Run("volume of another claim", func(t *testing.T) {
		f, mine := f.in(t), mine.in(t)
		claim := mine.makes("taker", func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = theirVolume.Name })
		f.event(claim, "already bound to a different claim")
		f.pending(claim)
		// A clone of that claim does not lead to the volume either.
		clone := mine.makes("taker-clone", from(claim.Name))
		f.event(clone, `its source, claim "taker", is not bound to a volume yet`)
		f.pending(clone)
	})

	// A tenant can clone only his own claims; a name leads no further than his namespace.
	t.Run("clones", func(t *testing.T) {
		f, mine := f.in(t), mine.in(t)
		source := mine.makes("own", func(*corev1.PersistentVolumeClaim) {})
		sourcePV := f.bound(source)
		claim := mine.makes("own-clone", from(source.Name))
		mine.checkOwn(t, f, claim, f.bound(claim), class)
		f.checkClone(claim, f.bound(claim), sourcePV, "1Gi")

		claim = mine.makes("by-name", from("data"))
		f.event(claim, fmt.Sprintf(`its source, claim "data", is not in namespace %q`, f.name))
		f.pending(claim)
		path := "../" + theirs.name + "/data"
		claim = mine.makes("by-path", from(path))
		f.event(claim, fmt.Sprintf("read its source, claim %q: invalid resource name", path))
		f.pending(claim)
		// In another tenant's pool, with a class of that pool.
		claim = mine.makes("elsewhere", func(c *corev1.PersistentVolumeClaim) {
			from(source.Name)(c)
			c.Spec.StorageClassName = ptr.To(theirClass.Name)
		})
		f.event(claim, fmt.Sprintf("its source, claim %q, is in pool %q: use a StorageClass with that pool", source.Name, f.name))
		f.pending(claim)
	})

	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
	f.must(rig.ImagesMatchVolumes(t.Context(), theirs.name))
	if after := metadata(); after != before {
		t.Errorf("the image of others said %q, and says %q now", before, after)
	}
	live, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(t.Context(), theirVolume.Name, metav1.GetOptions{})
	f.must(err)
	if live.Spec.ClaimRef == nil || live.Spec.ClaimRef.Namespace != theirs.name || live.Status.Phase != corev1.VolumeBound {
		t.Errorf("the volume of others is %s, for %v", live.Status.Phase, live.Spec.ClaimRef)
	}
}

// checkRights makes the tenant try what would lead around the provisioner.
func (t *tenant) checkRights(test *testing.T, theirs *fixture, volume *corev1.PersistentVolume) {
	const class = "---\n" + `{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: mine}, provisioner: ceph.com/rbd}`
	pv := "---\n" + `{apiVersion: v1, kind: PersistentVolume, metadata: {name: mine}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce],
		rbd: {monitors: ["127.0.0.1:1"], pool: ` + theirs.name + `, image: ` + volume.Spec.RBD.RBDImage + `}}}`
	claim := "---\n" + `{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: mine, namespace: ` + theirs.name + `}, spec:
		{accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}`
	for _, try := range []struct {
		stdin string
		args  []string
	}{
		{pv, []string{"create", "-f", "-"}},
		{class, []string{"create", "-f", "-"}},
		{claim, []string{"create", "-f", "-"}},
		{"", []string{"get", "secret", "user"}},
		{"", []string{"get", "secret", "-n", namespace, theirs.name + "-admin"}},
		{"", []string{"get", "pvc", "-n", theirs.name}},
		{"", []string{"get", "pv", volume.Name}},
		{"", []string{"get", "storageclass"}},
		{"", []string{"create", "secret", "generic", "-n", namespace, "mine"}},
		{"", []string{"delete", "pv", volume.Name}},
	} {
		out, err := rig.Kube.KubectlAs(test.Context(), t.kubeconfig, try.stdin, try.args...)
		if err == nil || !strings.Contains(err.Error(), "orbidden") {
			test.Errorf("kubectl %v %s: got %q, %v, want it to be forbidden", try.args, try.stdin, out, err)
		}
	}
}

// checkOwn checks that a volume is what its class says and belongs to the claim alone. of
// is the fixture of the class.
func (t *tenant) checkOwn(test *testing.T, of *fixture, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, class *storagev1.StorageClass) {
	test.Helper()
	source := pv.Spec.RBD
	if want := "kubernetes-dynamic-pvc-" + string(claim.UID); source.RBDPool != of.name || source.RBDImage != want ||
		source.RadosUser != of.name+"-user" || source.SecretRef.Name != "user" || source.SecretRef.Namespace != "" {
		test.Errorf("the volume's source is %+v, want image %s/%s", source, of.name, want)
	}
	if len(source.CephMonitors) != 1 || source.CephMonitors[0] != rig.Ceph.MonitorV1 || pv.Spec.StorageClassName != class.Name {
		test.Errorf("got the monitors %v and class %q", source.CephMonitors, pv.Spec.StorageClassName)
	}
	want := map[string]string{
		"pv.kubernetes.io/provisioned-by":                            "ceph.com/rbd",
		"rbdProvisionerIdentity":                                     "ceph.com/rbd",
		"rbd.ceph.com/cluster-fsid":                                  rig.Ceph.FSID,
		kubernetesCluster:                                            of.clusterUID(),
		"rbd.ceph.com/provisioner-deletion-user":                     of.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-name":      of.name + "-admin",
		"volume.kubernetes.io/provisioner-deletion-secret-namespace": namespace,
	}
	if !maps.Equal(want, pv.Annotations) || len(pv.Labels) > 0 {
		test.Errorf("the volume's annotations are %v, its labels %v, want %v and none", pv.Annotations, pv.Labels, want)
	}
}
