// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/labels"

	"ceph.com/rbd-provisioner/provisioner/storageclass"
)

const (
	defaultClass = "storageclass.kubernetes.io/is-default-class"
	oldClass     = corev1.BetaStorageClassAnnotation
)

// Every example states its namespace, so that it works from any context.
func TestExamplesStateTheirNamespace(t *testing.T) {
	for _, o := range load(t, "examples") {
		if _, ok := o.obj.(*storagev1.StorageClass); !ok && o.meta.GetNamespace() == "" {
			t.Errorf("%s: %s states no namespace", o.file, o.meta.GetName())
		}
	}
}

// The program accepts the classes' parameters, all classes have the same ones, and the
// secrets that they name are in secrets.yaml.
func TestExampleClassesFit(t *testing.T) {
	objects := load(t, "examples")
	classes := all[*storagev1.StorageClass](objects)
	if len(classes) < 3 {
		t.Fatalf("got %d classes, want 3", len(classes))
	}
	want := provisionerName(t, load(t, "deploy"))
	for _, c := range classes {
		if c.Provisioner != want {
			t.Errorf("%s: got provisioner %q, want %q", c.Name, c.Provisioner, want)
		}
		if diff := cmp.Diff(classes[0].Parameters, c.Parameters); diff != "" {
			t.Errorf("%s and %s differ in their parameters:\n%s", classes[0].Name, c.Name, diff)
		}
	}

	params, err := storageclass.Parse(classes[0].Parameters)
	if err != nil {
		t.Fatal(err)
	}
	admin, ok := find[*corev1.Secret](objects, params.Location.Secret.Namespace, params.Location.Secret.Name)
	if !ok || admin.StringData["key"] == "" {
		t.Errorf("there is no secret %+v with the entry \"key\"", params.Location.Secret)
	}
	if account := one[*corev1.ServiceAccount](t, load(t, "rbac")); params.Location.Secret.Namespace != account.Namespace {
		t.Errorf("the admin secret is in %q, which needs a further Role", params.Location.Secret.Namespace)
	}
	user, ok := find[*corev1.Secret](objects, params.UserSecret.Namespace, params.UserSecret.Name)
	if !ok || len(user.StringData) != 1 || len(user.Data) != 0 || user.Type != "kubernetes.io/rbd" {
		t.Errorf("there is no secret %+v of type kubernetes.io/rbd with exactly one entry", params.UserSecret)
	}

	// The additional Role is for exactly that user secret.
	role := one[*rbacv1.Role](t, objects)
	if role.Namespace != params.UserSecret.Namespace {
		t.Errorf("the further Role is in %q, the user secret in %q", role.Namespace, params.UserSecret.Namespace)
	}
	if diff := cmp.Diff([]string{params.UserSecret.Name}, role.Rules[0].ResourceNames); diff != "" {
		t.Errorf("secrets of the further Role (-want +got):\n%s", diff)
	}
}

// No example holds a key, not even one that was valid once.
func TestExamplesHoldNoKey(t *testing.T) {
	for _, s := range all[*corev1.Secret](load(t, "examples")) {
		for entry, value := range s.StringData {
			if !strings.HasPrefix(value, "PUT-THE-KEY-") {
				t.Errorf("secret %s, entry %q is not the placeholder", s.Name, entry)
			}
		}
	}
}

// storageclass.yaml shows all parameters; unused ones are comments.
func TestExampleClassShowsAllParameters(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, "examples/storageclass.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, parameters, ok := strings.Cut(string(data), "\nparameters:\n")
	if !ok {
		t.Fatal("there are no parameters")
	}
	var got []string
	for _, m := range regexp.MustCompile(`(?m)^  (?:# )?([A-Za-z./8]+): \S`).FindAllStringSubmatch(parameters, -1) {
		// A sentence may have a colon, too: "Default: none".
		if m[1] != "Default" {
			got = append(got, m[1])
		}
	}
	if diff := cmp.Diff(storageclass.Keys(), got); diff != "" {
		t.Errorf("parameters in order (-want +got):\n%s", diff)
	}
}

func TestExampleClaimsNameClassesThatExist(t *testing.T) {
	objects := load(t, "examples")
	classes := map[string]*storagev1.StorageClass{}
	var defaults []string
	for _, c := range all[*storagev1.StorageClass](objects) {
		classes[c.Name] = c
		if c.Annotations[defaultClass] == "true" {
			defaults = append(defaults, c.Name)
		}
	}
	if diff := cmp.Diff([]string{"rbd-default"}, defaults); diff != "" {
		t.Errorf("default classes (-want +got):\n%s", diff)
	}
	waiting := classes["rbd-wait"]
	if waiting == nil || deref(waiting.VolumeBindingMode, "") != storagev1.VolumeBindingWaitForFirstConsumer {
		t.Error("there is no class rbd-wait that waits for the first consumer")
	}

	var byAnnotation, blocks, clones int
	claims := all[*corev1.PersistentVolumeClaim](objects)
	for _, c := range claims {
		class := deref(c.Spec.StorageClassName, "")
		if old := c.Annotations[oldClass]; old != "" {
			if c.Spec.StorageClassName != nil {
				t.Errorf("%s names its class twice", c.Name)
			}
			class = old
			byAnnotation++
		}
		if classes[class] == nil {
			t.Errorf("%s: there is no class %q", c.Name, class)
		}
		if deref(c.Spec.VolumeMode, "") == corev1.PersistentVolumeBlock {
			blocks++
		}
		if c.Spec.DataSource != nil {
			clones++
			source, ok := find[*corev1.PersistentVolumeClaim](objects, c.Namespace, c.Spec.DataSource.Name)
			if !ok || source.Spec.Resources.Requests.Storage().Cmp(*c.Spec.Resources.Requests.Storage()) > 0 {
				t.Errorf("%s: there is no claim %q that it can be a clone of", c.Name, c.Spec.DataSource.Name)
			}
		}
	}
	if byAnnotation != 1 || blocks != 1 || clones != 1 || len(claims) != 4 {
		t.Errorf("got %d claims, %d by annotation, %d for a block device, %d clones; want 4, 1, 1, 1", len(claims), byAnnotation, blocks, clones)
	}
}

func TestExamplePodsUseClaimsThatExist(t *testing.T) {
	objects := load(t, "examples")
	pods := all[*corev1.Pod](objects)
	if len(pods) != 2 {
		t.Errorf("got %d Pods, want 2", len(pods))
	}
	for _, pod := range pods {
		for _, v := range pod.Spec.Volumes {
			claim, ok := find[*corev1.PersistentVolumeClaim](objects, pod.Namespace, v.PersistentVolumeClaim.ClaimName)
			if !ok {
				t.Errorf("there is no claim %q", v.PersistentVolumeClaim.ClaimName)
			} else if deref(claim.Spec.VolumeMode, corev1.PersistentVolumeFilesystem) != corev1.PersistentVolumeFilesystem {
				t.Errorf("claim %q has no file system to mount", claim.Name)
			}
		}
	}

	set := one[*appsv1.StatefulSet](t, objects)
	if *set.Spec.Replicas != 3 {
		t.Errorf("got %d replicas, want 3", *set.Spec.Replicas)
	}
	service, ok := find[*corev1.Service](objects, set.Namespace, set.Spec.ServiceName)
	if !ok {
		t.Fatalf("there is no Service %q", set.Spec.ServiceName)
	}
	podLabels := labels.Set(set.Spec.Template.Labels)
	if !labels.SelectorFromSet(service.Spec.Selector).Matches(podLabels) ||
		!labels.SelectorFromSet(set.Spec.Selector.MatchLabels).Matches(podLabels) {
		t.Error("the StatefulSet or its Service does not select the Pods")
	}
	var templates, mounts []string
	for _, c := range set.Spec.VolumeClaimTemplates {
		templates = append(templates, c.Name)
		if c.Spec.StorageClassName != nil || c.Annotations[oldClass] != "" {
			t.Errorf("claim template %q names a class, want the default one", c.Name)
		}
	}
	for _, m := range set.Spec.Template.Spec.Containers[0].VolumeMounts {
		mounts = append(mounts, m.Name)
	}
	slices.Sort(templates)
	slices.Sort(mounts)
	if diff := cmp.Diff(templates, mounts); diff != "" {
		t.Errorf("claim templates and mounts differ:\n%s", diff)
	}
}
