// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"ceph.com/rbd-provisioner/test/cluster"
)

// volumeGone waits until a volume does not exist any more, wherever its image is.
func (f *fixture) volumeGone(volume *corev1.PersistentVolume) {
	f.Helper()
	bare := volume.DeepCopy()
	bare.Spec.RBD = nil
	f.gone(bare)
}

// trashed returns the ID of an image in the trash.
func (f *fixture) trashed(image string) string {
	f.Helper()
	var list []struct{ ID, Name string }
	f.must(rig.Ceph.JSON(f.Context(), &list, "rbd", "trash", "ls", "--pool", f.name))
	for _, entry := range list {
		if entry.Name == image {
			return entry.ID
		}
	}
	f.Fatalf("image %s is not in the trash, which holds %v", image, list)
	return ""
}

// allowManager lets the fixture's admin ask Ceph's manager for work.
func (f *fixture) allowManager() {
	f.Helper()
	_, err := rig.Ceph.Run(f.Context(), "ceph", "auth", "caps", "client."+f.name+"-admin",
		"mon", "profile rbd", "osd", "profile rbd pool="+f.name, "mgr", "profile rbd pool="+f.name)
	f.must(err)
}

// byEachRemover runs a test where the fixture's admin may ask Ceph's manager for work, and
// one where it may not. by is who removes small images there, as the log calls it.
func byEachRemover(t *testing.T, test func(t *testing.T, f *fixture, by string)) {
	t.Parallel()
	for name, remover := range map[string]struct {
		by    string
		begin func(*fixture)
	}{
		"with the cap":    {"manager", (*fixture).allowManager},
		"without the cap": {"provisioner", func(*fixture) {}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			remover.begin(f)
			test(t, f, remover.by)
		})
	}
}

// purgedBy waits until a provisioner's log says what removed a volume's image from the trash.
func (f *fixture) purgedBy(p *cluster.Provisioner, pv *corev1.PersistentVolume, by string) {
	f.Helper()
	if line := f.logged(p, pv, "Image removed from the trash"); !strings.Contains(line, `by="`+by+`"`) {
		f.Errorf("it was not removed by the %s: %s", by, line)
	}
}

// logged waits for a line of a provisioner's log about a volume's image, and returns it.
func (f *fixture) logged(p *cluster.Provisioner, pv *corev1.PersistentVolume, text string) (line string) {
	f.Helper()
	f.eventually(func(context.Context) error {
		for line = range strings.Lines(log(f.T, p)) {
			if strings.Contains(line, text) && strings.Contains(line, pv.Spec.RBD.RBDImage) {
				return nil
			}
		}
		return fmt.Errorf("the log does not say %q of image %s", text, pv.Spec.RBD.RBDImage)
	})
	return line
}

// The first deletion ever in a pool that is over its quota, where the image is to be kept.
func TestTrashRetentionInFullPool(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	claim := f.claim("data", f.class("a", func(c *storagev1.StorageClass) { c.Parameters["trashRetention"] = "1h" }), nil)
	pv := f.bound(claim)
	f.untrash()
	f.fill()
	f.delete(claim)
	f.volumeGone(pv)
	f.rbd("trash", "rm", "--force", "--no-progress", f.trashed(pv.Spec.RBD.RBDImage))
	f.quota("0")
}

// The volume of a large image is gone as soon as that of a small one. The image is
// removed later, in parts, the last one like a small image: by Ceph's manager if the user may
// ask it, otherwise by us.
func TestLargeVolume(t *testing.T) {
	byEachRemover(t, func(t *testing.T, f *fixture, by string) {
		claim := f.sized("large", "128Gi", f.class("a", nil))
		pv := f.bound(claim)
		f.delete(claim)
		f.volumeGone(pv)
		f.trashed(pv.Spec.RBD.RBDImage) // for seconds
		f.gone(pv)
		f.logged(rig.main, pv, "A large image is removed from the trash in parts")
		f.purgedBy(rig.main, pv, by)
	})
}

// A manager that does not answer is not needed, and does no harm when it answers after
// all. Not parallel, since all tests share it.
func TestPausedManager(t *testing.T) {
	f := newFixture(t)
	f.allowManager()
	class := f.class("a", nil)
	claim := f.claim("first", class, nil)
	pv := f.bound(claim)
	f.must(rig.Ceph.Mgr.Pause(t.Context()))
	resume := sync.OnceValue(rig.Ceph.Mgr.Resume)
	defer func() { f.must(resume()) }()
	f.delete(claim)
	f.gone(pv)
	f.purgedBy(rig.main, pv, "provisioner")
	f.must(resume())

	// In a pool about which nothing is known, it is asked again.
	other := newFixture(t)
	other.allowManager()
	claim = other.claim("second", other.class("a", nil), nil)
	pv = other.bound(claim)
	other.delete(claim)
	other.gone(pv)
	other.purgedBy(rig.main, pv, "manager")
}

// A manager that accepts an image and then dies, or removes none, is not waited for: what it
// was given is removed here, and it gets no more, from no pool. Not parallel, since all tests
// share the manager, and the provisioner must forget what it knows of it.
func TestLostManager(t *testing.T) {
	for _, test := range []struct {
		name, reason string
		lose         func(*fixture)
	}{
		{"busy", "none has gone for half a minute", func(*fixture) {}},
		{"killed", "no answer in time", func(*fixture) { rig.Ceph.Mgr.Kill() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			f, other := newFixture(t), newFixture(t)
			f.allowManager()
			other.allowManager()
			claims := []*corev1.PersistentVolumeClaim{f.claim("first", f.class("a", nil), nil), other.claim("second", other.class("a", nil), nil)}
			volumes := []*corev1.PersistentVolume{f.bound(claims[0]), other.bound(claims[1])}
			t.Cleanup(func() {
				ctx := context.WithoutCancel(t.Context())
				f.must(rig.main.Restart(ctx))
				select {
				case <-rig.Ceph.Mgr.Done():
					f.must(rig.Ceph.Mgr.Start(ctx))
				default:
				}
			})
			f.occupyManager()

			f.delete(claims[0])
			f.logged(rig.main, volumes[0], "Image moved to the trash")
			f.eventually(func(ctx context.Context) error {
				tasks, err := rig.Ceph.Run(ctx, "ceph", "rbd", "task", "list")
				if err == nil && !strings.Contains(tasks, f.name+"/") {
					err = errors.New("the manager was not asked")
				}
				return err
			})
			test.lose(f)
			if line := f.logged(rig.main, volumes[0], "Ceph's manager does not remove the images that it accepted"); !strings.Contains(line, test.reason) {
				t.Errorf("the log gives another reason: %s", line)
			}
			f.gone(volumes[0])
			f.purgedBy(rig.main, volumes[0], "provisioner")
			other.delete(claims[1])
			other.gone(volumes[1])
			other.purgedBy(rig.main, volumes[1], "provisioner")
		})
	}
}

// occupyManager gives Ceph's manager an image whose removal takes hours, until the test ends.
func (f *fixture) occupyManager() {
	f.Helper()
	pool := f.name + "-large"
	f.must(rig.Ceph.CreatePool(f.Context(), pool))
	f.Cleanup(func() { f.must(rig.Ceph.DeletePool(context.WithoutCancel(f.Context()), pool)) })
	for _, command := range [][]string{
		{"rbd", "create", "--size", "1P", "--image-feature", "layering", pool + "/large"},
		{"ceph", "rbd", "task", "add", "remove", pool + "/large"},
	} {
		_, err := rig.Ceph.Run(f.Context(), command[0], command[1:]...)
		f.must(err)
	}
}

// documentedVolume is the PersistentVolume in docs/trash.md.
var documentedVolume = regexp.MustCompile("(?s)```yaml\n(apiVersion: v1\nkind: PersistentVolume\n.*?)```")

// A claim that was deleted by mistake is restored with the commands of docs/trash.md, and
// deleted again.
func TestTrashRetention(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	class := f.class("a", func(c *storagev1.StorageClass) { c.Parameters["trashRetention"] = "24h" })
	claim := f.claim("data", class, nil)
	pv := f.bound(claim)
	image := pv.Spec.RBD.RBDImage
	f.delete(claim)
	f.volumeGone(pv)

	id := f.trashed(image)
	if _, err := rig.Ceph.Run(t.Context(), "rbd", "trash", "rm", "--pool", f.name, id); err == nil {
		t.Error("rbd removed it from the trash without --force, though it is to be kept")
	}
	f.rbd("trash", "restore", id)
	meta := f.rbd("image-meta", "list", image)
	for _, want := range []string{pv.Name, claim.Name, claim.Namespace} {
		if !strings.Contains(meta, want) {
			t.Errorf("the image's metadata does not name %q:\n%s", want, meta)
		}
	}
	var info struct{ ID string }
	f.must(rig.Ceph.JSON(t.Context(), &info, "rbd", "info", "--pool", f.name, image))
	if info.ID != id {
		t.Errorf("the image has the ID %q, want %q", info.ID, id)
	}

	page, err := os.ReadFile(checkout("docs", "trash.md"))
	f.must(err)
	block := documentedVolume.FindSubmatch(page)
	if block == nil {
		t.Fatal("docs/trash.md has no PersistentVolume")
	}
	var again corev1.PersistentVolume
	f.must(yaml.UnmarshalStrict(block[1], &again))
	again.Name = pv.Name
	again.Spec.StorageClassName = class.Name
	again.Spec.ClaimRef.Namespace, again.Spec.ClaimRef.Name = claim.Namespace, claim.Name
	again.Spec.RBD.CephMonitors, again.Spec.RBD.RBDPool, again.Spec.RBD.RBDImage = pv.Spec.RBD.CephMonitors, f.name, image
	again.Spec.RBD.RadosUser, again.Spec.RBD.SecretRef.Name = pv.Spec.RBD.RadosUser, pv.Spec.RBD.SecretRef.Name
	_, err = rig.Kube.Client.CoreV1().PersistentVolumes().Create(t.Context(), &again, metav1.CreateOptions{})
	f.must(err)
	// A claim that is made before Kubernetes has seen the volume gets another one.
	f.eventually(func(ctx context.Context) error {
		pv, err := rig.Kube.Client.CoreV1().PersistentVolumes().Get(ctx, again.Name, metav1.GetOptions{})
		if err == nil && pv.Status.Phase != corev1.VolumeAvailable {
			err = fmt.Errorf("volume %s is %q", pv.Name, pv.Status.Phase)
		}
		return err
	})
	claim = f.claim("data", class, nil)
	if now := f.bound(claim); now.Name != pv.Name {
		t.Errorf("the claim has the volume %s, want %s", now.Name, pv.Name)
	}
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))

	// The volume that was made by hand does not ask for a retention.
	f.delete(claim)
	f.gone(pv)
	f.must(rig.ImagesMatchVolumes(t.Context(), f.name))
}

// Images that others put into the trash stay there.
func TestTrashOfOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.rbd("create", "--size", "1M", "theirs")
	f.rbd("trash", "mv", "theirs")
	claim := f.claim("data", f.class("a", nil), nil)
	pv := f.bound(claim)
	f.delete(claim)
	f.gone(pv)
	f.must(cluster.Eventually(t.Context(), patience, func(ctx context.Context) error {
		trash, err := rig.Ceph.Trash(ctx, f.name)
		if err == nil && !slices.Equal(trash, []string{"theirs"}) {
			err = errors.New("the trash holds " + strings.Join(trash, ", "))
		}
		return err
	}))
	f.rbd("trash", "rm", "--no-progress", f.trashed("theirs"))
}
